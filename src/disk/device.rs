//! What can be found out about the device and file system under an open file: [`DeviceFacts`].

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, StatxFlags};

use super::DeviceFacts;
use crate::frame::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN};

/// Reads the facts; `direct` is left false for the caller to find out.
pub(crate) fn facts(file: BorrowedFd<'_>) -> io::Result<DeviceFacts> {
    let stat = fs::fstat(file)?;
    let (major, minor) = (fs::major(stat.st_dev), fs::minor(stat.st_dev));
    let queue = queue_dir(major, minor);
    let read =
        |name: &str| queue.as_ref().and_then(|dir| std::fs::read_to_string(dir.join(name)).ok());
    let number = |name: &str| read(name).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let physical = number("physical_block_size");
    let align = direct_align(file);
    let file_system = file_system_name(fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff);
    Ok(DeviceFacts {
        device: format!("{major}:{minor}"),
        volatile: matches!(&*file_system, "tmpfs" | "ramfs"),
        file_system,
        direct: false,
        block_bytes: block_bytes(align, physical),
        direct_align_bytes: align,
        logical_sector_bytes: number("logical_block_size"),
        physical_sector_bytes: physical,
        write_cache: read("write_cache").map(|text| text.trim().to_owned()).unwrap_or_default(),
        fua: read("fua").map(|text| text.trim() == "1"),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}

/// The log's block for this direct I/O alignment and physical sector, each 0 when unknown.
fn block_bytes(direct_align: usize, physical_sector: usize) -> usize {
    match direct_align.max(physical_sector) {
        0 => 4096,
        larger => larger.clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX).next_power_of_two(),
    }
}

/// The alignment of direct I/O as statx reports it (Linux 6.1); 0 when it does not.
fn direct_align(file: BorrowedFd<'_>) -> usize {
    match fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            stat.stx_dio_offset_align as usize
        }
        _ => 0,
    }
}

/// The request queue in sysfs: a partition has none of its own, its disk has.
fn queue_dir(major: u32, minor: u32) -> Option<PathBuf> {
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    [device.join("queue"), device.join("../queue")].into_iter().find(|dir| dir.is_dir())
}

fn file_system_name(magic: u64) -> String {
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        0x6573_5546 => "fuse",
        0x6969 => "nfs",
        0x0102_1997 => "9p",
        0xff53_4d42 | 0xfe53_4d42 => "cifs",
        0x00c3_6400 => "ceph",
        0xf15f => "ecryptfs",
        0x3434 => "nilfs2",
        0x3153_464a => "jfs",
        0x0116_1970 => "gfs2",
        0x4d44 => "vfat",
        0x2011_bab0 => "exfat",
        0x7366_746e => "ntfs3",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_covers_alignment_and_sector() {
        assert_eq!(block_bytes(0, 0), 4096);
        assert_eq!(block_bytes(512, 0), 512);
        assert_eq!(block_bytes(4, 512), 512);
        assert_eq!(block_bytes(512, 4096), 4096);
        assert_eq!(block_bytes(4096, 512), 4096);
        assert_eq!(block_bytes(5000, 0), 8192);
        assert_eq!(block_bytes(1 << 30, 0), BLOCK_BYTES_MAX);
    }

    #[test]
    fn file_systems_have_their_names() {
        assert_eq!(file_system_name(0xef53), "ext4");
        assert_eq!(file_system_name(0x1234_5678), "0x12345678");
        let proc = std::fs::File::open("/proc/self/stat").unwrap();
        let facts = facts(std::os::fd::AsFd::as_fd(&proc)).unwrap();
        assert_eq!(facts.file_system, "0x9fa0");
        assert!(!facts.kernel.is_empty() && !facts.volatile && facts.block_bytes == 4096);
    }
}
