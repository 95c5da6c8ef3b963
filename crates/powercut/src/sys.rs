//! The system calls that mounting takes: loop devices, a mount namespace, mounts. Everything here goes by
//! itself when the process ends: the mounts with the namespace, the loop devices with the mounts.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;
const LOOP_MAJOR: u32 = 7;

/// `struct loop_config` of linux/loop.h, with the `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 8 + 232 + 64);

/// Mounts made from here on are this process' (and its children's) alone. Called before any thread runs.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: no pointers; it changes the calling process only.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

fn ioctl(fd: RawFd, request: libc::c_ulong, argument: *mut LoopConfig) -> io::Result<i32> {
    // SAFETY: the requests used here take no argument, or read the structure that `argument` points to,
    // which the caller borrows for the call.
    let result = unsafe { libc::ioctl(fd, request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A loop device over a file. It goes when the last user goes: this, or the mount on it.
pub struct LoopDevice {
    pub path: PathBuf,
    _device: File,
}

impl LoopDevice {
    pub fn attach(file: &File, direct: bool) -> io::Result<LoopDevice> {
        let control = File::open("/dev/loop-control")?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let number =
                ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, std::ptr::null_mut())? as u32;
            match LoopDevice::configure(number, file, direct) {
                // Somebody else took it meanwhile.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EBUSY))
                        && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    fn configure(number: u32, file: &File, direct: bool) -> io::Result<LoopDevice> {
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.exists() {
            let mode = Mode::RUSR | Mode::WUSR;
            let device = makedev(LOOP_MAJOR, number);
            match mknodat(rustix::fs::CWD, &path, FileType::BlockDevice, mode, device) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut config = LoopConfig {
            fd: file.as_raw_fd() as u32,
            block_size: 512,
            numbers: [0; 5],
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: AUTOCLEAR | if direct { DIRECT_IO } else { 0 },
            names: [0; 160],
            init: [0; 2],
            reserved: [0; 8],
        };
        ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &mut config)?;
        Ok(LoopDevice { path, _device: device })
    }
}

/// Opens a file for a loop device with direct I/O.
pub fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// A mount, taken down when dropped.
pub struct Mount {
    point: PathBuf,
    is_up: bool,
}

impl Mount {
    pub fn new(device: &Path, point: &Path, fs: Fs) -> io::Result<Mount> {
        let options = match fs {
            Fs::Ext4 => c"",
            // Copies of one file system have one id.
            Fs::Xfs => c"nouuid",
        };
        rustix::mount::mount(device, point, fs.name(), MountFlags::empty(), options)?;
        Ok(Mount { point: point.to_owned(), is_up: true })
    }

    /// Takes it down. The kernel may hold files of a process that has ended for a moment.
    pub fn unmount(mut self) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match rustix::mount::unmount(&self.point, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(()) => {
                    self.is_up = false;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_up {
            let _gone = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
        }
    }
}

/// The file systems.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Fs {
    Ext4,
    Xfs,
}

impl Fs {
    pub fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
        }
    }

    /// As small as it can be, since every image is copied.
    pub fn bytes(self) -> u64 {
        match self {
            Fs::Ext4 => 48 << 20,
            Fs::Xfs => 300 << 20,
        }
    }

    pub fn make(self, device: &Path) -> Result<(), String> {
        let mut command = match self {
            Fs::Ext4 => Command::new("mkfs.ext4"),
            Fs::Xfs => Command::new("mkfs.xfs"),
        };
        match self {
            // The whole inode table is written now, not by a kernel thread later.
            Fs::Ext4 => command.args(["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4"]).args([
                "-N",
                "512",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            ]),
            Fs::Xfs => command.args(["-q", "-f", "-K"]),
        };
        run(command.arg(device), &[0])
    }

    /// What an administrator's boot does before it mounts: for ext4 the check, which replays the
    /// journal; XFS replays its log when it is mounted.
    pub fn mend(self, image: &Path) -> Result<(), String> {
        match self {
            Fs::Ext4 => run(Command::new("e2fsck").arg("-fy").arg(image), &[0, 1, 2, 3]),
            Fs::Xfs => Ok(()),
        }
    }

    /// Why it cannot be made and mounted here; none where it can.
    pub fn missing(self) -> Option<String> {
        let has = |name: &str| {
            let mut command = Command::new(name);
            command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok()
        };
        let programs: &[&str] = match self {
            Fs::Ext4 => &["mkfs.ext4", "e2fsck"],
            Fs::Xfs => &["mkfs.xfs"],
        };
        programs.iter().find(|name| !has(name)).map(|name| format!("there is no {name}"))
    }
}

fn run(command: &mut Command, good: &[i32]) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}: {} {}",
        output.status,
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
