//! What a result depends on beside the code: the machine, its disk, and what built the program.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Map, Value, json};

/// The environment of a result. What cannot be found out says "unknown".
#[derive(Clone, Debug, PartialEq)]
pub struct Environment {
    /// The CPU's model.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// Type and mount options of the file system that is measured.
    pub file_system: String,
    /// Block device under it: name, and model where the drive tells it.
    pub device: String,
    /// "write back" or "write through", as the kernel sees the drive's cache.
    pub write_cache: String,
    /// Whether the kernel may use FUA writes there.
    pub fua: String,
    /// The device's I/O scheduler.
    pub scheduler: String,
    /// What the kernel reads the time from.
    pub clock_source: String,
    /// Transparent huge pages: "always", "madvise" or "never".
    pub huge_pages: String,
    /// Commit that the program was built from, with "-dirty" where the source was changed.
    pub commit: String,
    /// The compiler.
    pub rustc: String,
    /// Load average of the last minute when this was looked at: what else went on.
    pub load: f64,
}

impl Environment {
    /// That of a measurement in `dir`, which exists.
    pub fn of(dir: &Path) -> Self {
        let queue = queue_dir(dir);
        let queued = |name: &str| {
            queue.as_ref().map_or_else(unknown, |queue| first_line(&queue.join("queue").join(name)))
        };
        let uname = rustix::system::uname();
        let load = first_line(Path::new("/proc/loadavg"));
        Environment {
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            kernel: uname.release().to_string_lossy().into_owned(),
            file_system: file_system(dir),
            device: queue.as_deref().map_or_else(unknown, device_name),
            write_cache: queued("write_cache"),
            fua: queued("fua"),
            scheduler: bracketed(&queued("scheduler")),
            clock_source: first_line(Path::new(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            )),
            huge_pages: bracketed(&first_line(Path::new(
                "/sys/kernel/mm/transparent_hugepage/enabled",
            ))),
            commit: env!("URINGLOG_COMMIT").to_owned(),
            rustc: env!("URINGLOG_RUSTC").to_owned(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }

    /// As an object, in the order above.
    pub fn to_json(&self) -> Value {
        let mut object: Map<String, Value> =
            self.rows().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        object.insert("cpus".to_owned(), json!(self.cpus));
        object.insert("load".to_owned(), json!(self.load));
        Value::Object(object)
    }

    /// Names and values, for people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("cpu", self.cpu.clone()),
            ("cpus", self.cpus.to_string()),
            ("kernel", self.kernel.clone()),
            ("file_system", self.file_system.clone()),
            ("device", self.device.clone()),
            ("write_cache", self.write_cache.clone()),
            ("fua", self.fua.clone()),
            ("scheduler", self.scheduler.clone()),
            ("clock_source", self.clock_source.clone()),
            ("huge_pages", self.huge_pages.clone()),
            ("commit", self.commit.clone()),
            ("rustc", self.rustc.clone()),
            ("load", self.load.to_string()),
        ]
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn first_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .next()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map_or_else(unknown, str::to_owned)
}

/// The word in brackets: how the kernel marks the one that is chosen.
fn bracketed(text: &str) -> String {
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or(text, |(chosen, _)| chosen).to_owned()
}

/// From /proc/cpuinfo: the model's name, or on machines that only number it, what they say.
fn cpu_model(cpuinfo: &str) -> String {
    ["model name", "cpu model", "Hardware", "CPU part"]
        .iter()
        .find_map(|key| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(unknown)
}

/// The directory in /sys of the disk under `dir`: that of the whole disk, for a partition.
fn queue_dir(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    path.ancestors().take(2).find(|path| path.join("queue").is_dir()).map(Path::to_owned)
}

fn device_name(sys: &Path) -> String {
    let name = sys.file_name().map_or_else(unknown, |name| name.to_string_lossy().into_owned());
    match first_line(&sys.join("device/model")).as_str() {
        "unknown" => name,
        model => format!("{name} ({model})"),
    }
}

/// Type and options of the mount that `dir` lies on.
fn file_system(dir: &Path) -> String {
    let Ok(dir) = fs::canonicalize(dir) else { return unknown() };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_of(&mounts, &dir).unwrap_or_else(unknown)
}

/// The line of the longest mount point that `dir` begins with; the later of two, which hides the
/// earlier.
fn mount_of(mounts: &str, dir: &Path) -> Option<String> {
    let mut found: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(4);
        let (Some(point), Some(options)) = (left.next(), left.next()) else { continue };
        let mut right = right.split(' ');
        let (Some(kind), Some(more)) = (right.next(), right.nth(1)) else { continue };
        let longest = found.as_ref().is_none_or(|(length, _)| *length <= point.len());
        if dir.starts_with(point.replace("\\040", " ")) && longest {
            found = Some((point.len(), format!("{kind} ({options}; {more})")));
        }
    }
    found.map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_filled() {
        let here = Environment::of(Path::new("."));
        let object = here.to_json();
        for (name, value) in here.rows() {
            assert!(!value.is_empty(), "{name}");
            assert!(!object[name].is_null(), "{name}");
        }
        assert!(here.cpus > 0 && object["cpus"].is_u64() && object["load"].is_number());
    }

    #[test]
    fn the_longest_and_last_mount_counts() {
        let mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/sda rw\n\
             23 22 8:2 / /data rw shared:1 - ext4 /dev/sdb rw,errors=x\n\
             24 23 8:3 / /data rw,noatime shared:2 master:1 - xfs /dev/sdc rw,attr2\n";
        let mount = |dir| mount_of(mounts, Path::new(dir));
        assert_eq!(mount("/data/log").as_deref(), Some("xfs (rw,noatime; rw,attr2)"));
        assert_eq!(mount("/database").as_deref(), Some("ext4 (rw,relatime; rw)"));
    }

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(bracketed("none [mq-deadline] kyber"), "mq-deadline");
        assert_eq!(bracketed("none"), "none");
        assert_eq!(cpu_model("processor : 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
        assert_eq!(cpu_model(""), "unknown");
    }
}
