//! What the test programs share: the backends, processes of their own, and calls to the system.
#![allow(unsafe_code)]
// Each test program uses a part of it.
#![allow(dead_code)]

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use uringlog::{Backend, BackendChoice, Log, Lsn, OpenError, Options, Reader};

/// Long enough for anything on a slow machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One way to the disk, and an empty directory there.
pub struct Case {
    pub name: &'static str,
    pub backend: Backend,
    pub dir: PathBuf,
    /// Small sizes, nothing measured.
    pub options: Options,
}

impl Case {
    pub fn open(&self) -> Log {
        self.open_with(self.options.clone())
    }

    pub fn open_with(&self, options: Options) -> Log {
        let log = options.open(&self.dir).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert_eq!(log.backend().backend, self.backend, "{}", self.name);
        log
    }

    /// A further directory on the same file system; the log there is created by opening it.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.dir.with_file_name(name)
    }

    /// The same with another directory.
    pub fn at(&self, name: &str) -> Case {
        let (name, dir) = (self.name, self.dir(name));
        Case { name, backend: self.backend, dir, options: self.options.clone() }
    }

    /// Whether files go through the page cache here.
    pub fn is_buffered(&self) -> bool {
        self.name == BUFFERED
    }
}

/// Runs the test with a log after another, until so many processes were killed on each backend as
/// `URINGLOG_TEST_KILLS` says; with one log where it says nothing. The test is given the number of its
/// first life, and returns how many processes it killed.
pub fn each_backend_killing(test: impl Fn(&Case, u64) -> u64 + Sync) {
    let asked = std::env::var("URINGLOG_TEST_KILLS").ok().map(|text| text.parse().unwrap());
    each_backend(|case| {
        let (mut logs, mut kills) = (0, 0);
        while logs == 0 || asked.is_some_and(|asked: u64| kills < asked) {
            let case = case.at(&format!("log-{logs}"));
            kills += test(&case, 1000 * logs);
            std::fs::remove_dir_all(&case.dir).unwrap();
            logs += 1;
        }
        eprintln!("{}: {kills} processes killed on {logs} logs", case.name);
    });
}

const URING: &str = "uring";
const PSYNC: &str = "psync";
const BUFFERED: &str = "psync, buffered";

/// Runs the test on every backend that this machine has: io_uring, plain system calls, and the page
/// cache (a file system in memory that refuses direct I/O, which takes the right to mount one).
pub fn each_backend(test: impl Fn(&Case) + Sync) {
    let mut ran = on_disk(URING, BackendChoice::Uring, Backend::Uring, &test);
    ran |= on_disk(PSYNC, BackendChoice::Psync, Backend::Psync, &test);
    let options = small_options().backend(BackendChoice::Psync).buffered(true);
    let buffered = with_mount("ramfs", "", |path| {
        let dir = path.join("log");
        run(Case { name: BUFFERED, backend: Backend::Psync, dir, options: options.clone() }, &test)
    });
    ran |= match buffered {
        Ok(ran) => ran,
        Err(error) => skipped(BUFFERED, format!("cannot mount a ramfs: {error}")),
    };
    assert!(ran, "no backend works here");
}

/// As [`each_backend`], on a disk only: for what is too large for memory.
pub fn each_disk_backend(test: impl Fn(&Case) + Sync) {
    let uring = on_disk(URING, BackendChoice::Uring, Backend::Uring, &test);
    let psync = on_disk(PSYNC, BackendChoice::Psync, Backend::Psync, &test);
    assert!(uring | psync, "no backend works here");
}

fn on_disk(
    name: &'static str,
    choice: BackendChoice,
    backend: Backend,
    test: &impl Fn(&Case),
) -> bool {
    let temp = temp_dir();
    let dir = temp.path().join("log");
    run(Case { name, backend, dir, options: small_options().backend(choice) }, test)
}

fn run(case: Case, test: &impl Fn(&Case)) -> bool {
    match case.options.clone().open(case.dir("probe")) {
        Ok(log) => drop(log),
        Err(OpenError::Unsupported { what, .. }) => return skipped(case.name, what),
        Err(error) => panic!("{}: {error}", case.name),
    }
    std::fs::remove_dir_all(case.dir("probe")).unwrap();
    test(&case);
    true
}

pub fn skipped(what: &str, why: impl Display) -> bool {
    eprintln!("skipped: {what}: {why}");
    false
}

/// Small sizes, so that a test makes rotations and full rings; nothing measured at open.
pub fn small_options() -> Options {
    Options::new()
        .segment_bytes(1 << 20)
        .segments_ready(1)
        .rings(2)
        .ring_bytes(64 << 10)
        .rings_retired_max(2)
        .batch_bytes_max(256 << 10)
        .large_bytes_max(1 << 20)
        .prepare_bytes_per_s(1 << 30)
        .calibrate(false)
}

/// A directory on the disk that this is built on; gone when dropped.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A payload that says what it is, of any length.
pub fn payload(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) + at / 251 + seed * 17) as u8).collect()
}

/// Everything that a reader gives from `from` on, with dense numbers.
pub fn read_from(mut reader: Reader, from: u64) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        assert_eq!(record.lsn().get(), from + all.len() as u64, "numbers are dense");
        all.push(record.payload().to_vec());
    }
    all
}

pub fn read_all(log: &Log) -> Vec<Vec<u8>> {
    read_from(log.reader(Lsn::FIRST).unwrap(), 1)
}

/// Waits until `condition` holds, with a bound that only a bug reaches.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `call` on a thread of its own and fails the test if it does not return.
pub fn in_time<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || drop(sender.send(call())));
    match receiver.recv_timeout(PATIENCE) {
        Ok(value) => {
            thread.join().unwrap();
            value
        }
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("did not return: {what}"),
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!(),
        },
    }
}

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }
}

// ---- processes of their own ----

const ROLE: &str = "URINGLOG_TEST_ROLE";
const ARGUMENT: &str = "URINGLOG_TEST_ARGUMENT";

/// What [`again`] made this process for; `None` in the test itself.
pub fn role() -> Option<(String, PathBuf)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, PathBuf::from(std::env::var_os(ARGUMENT).unwrap_or_default())))
}

/// A command that runs the named test of this program in a process of its own, where [`role`] says
/// what it is there for. It speaks by [`say`]; in its output that follows a `@`.
pub fn again(test: &str, role: &str, argument: impl AsRef<Path>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(ARGUMENT, argument.as_ref())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Says a line to the process that made this one, at once and in one piece.
pub fn say(line: impl Display) {
    use std::io::Write;
    let line = format!("@{line}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

/// What the line says, if something did with [`say`]. Half a line is none.
pub fn said(line: &str) -> Option<&str> {
    Some(line.strip_suffix('\n')?.split_once('@')?.1)
}

/// Runs [`again`] to the end. Returns what it said; fails with its output if it failed.
pub fn run_again(test: &str, role: &str, argument: impl AsRef<Path>) -> Vec<String> {
    let output = again(test, role, argument).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{role}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text.split_inclusive('\n').filter_map(said).map(str::to_owned).collect()
}

// ---- calls to the system ----

/// Cores that this thread may run on.
pub fn cores() -> Vec<usize> {
    // SAFETY: an all-zero set is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is of the size given and outlives the call.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    // SAFETY: every index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Moves this thread to a core.
pub fn move_to(core: usize) {
    // SAFETY: an all-zero set is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the core came from `cores`, so it is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is of the size given and outlives the call.
    let failed = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
}

/// User and system time that this process has used.
pub fn cpu_used() -> Duration {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec as u64) + Duration::from_micros(value.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Sets a soft limit of this process, and the hard one too with `for_good`.
pub fn limit(resource: libc::__rlimit_resource_t, value: u64, for_good: bool) {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` outlives the call.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut limits) }, 0);
    limits.rlim_cur = value.min(limits.rlim_max);
    if for_good {
        limits.rlim_max = limits.rlim_cur;
    }
    // SAFETY: `limits` outlives the call.
    let failed = unsafe { libc::setrlimit(resource, &raw const limits) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
}

/// Lets writes beyond the file size limit fail, where by default they end the process.
pub fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// From now on this thread, and those that it starts, get `errno` from `io_uring_setup`.
pub fn refuse_io_uring(errno: i32) -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The system call's number is the first word of what the filter sees.
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: `program` and the filter that it points to outlive the call, which copies them.
    check(unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    })
}

/// Takes the right to lock memory beyond the limit from this thread and those that it starts.
pub fn drop_right_to_lock_memory() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_IPC_LOCK: u32 = 14;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: both structures have the kernel's layout of version 3 and outlive the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    check(got as i32)?;
    for set in [&mut sets[0].effective, &mut sets[0].permitted, &mut sets[0].inheritable] {
        *set &= !(1 << CAP_IPC_LOCK);
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } as i32)
}

/// Mounts an empty file system that only `test`'s thread, and what it starts, can see, and runs
/// `test` with its path.
pub fn with_mount<T: Send>(
    kind: &str,
    options: &str,
    test: impl FnOnce(&Path) -> T + Send,
) -> io::Result<T> {
    let temp = temp_dir();
    let point = temp.path().to_owned();
    let [kind, options, path] =
        [kind, options, point.to_str().unwrap()].map(|text| std::ffi::CString::new(text).unwrap());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let none = std::ptr::null();
            // SAFETY: takes no pointers; this thread gets a view of the mounts of its own.
            check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            // SAFETY: the strings end in 0 and outlive the call; where null stands it is allowed.
            check(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) })?;
            // SAFETY: as above.
            check(unsafe {
                libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast())
            })?;
            let outcome = test(&point);
            // SAFETY: as above. If it is still in use, it goes with the last thread that sees it.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
            Ok(outcome)
        });
        match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
