//! A reader at the end of another process' idle log costs next to nothing, whatever stands there.

use std::time::{Duration, Instant};

use uringlog::{Options, Reader};

fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_look_at_the_end_reads_some_blocks() {
    for recycled in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().segment_bytes(4 << 20).ring_bytes(64 << 10).calibrate(false);
        let log = options.buffered(true).open(dir.path()).unwrap();
        let begun = Instant::now();
        let record = vec![7; 64 << 10];
        while log.stats().recycled.count < 6 && (recycled || log.stats().appends < 100) {
            let lsn = log.append(&record).unwrap().wait().unwrap();
            if recycled && lsn.get().is_multiple_of(32) {
                log.trim(lsn).unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        std::thread::sleep(Duration::from_millis(300));
        let mut reader = Reader::open_dir_last(dir.path(), 1).unwrap();
        while reader.next_record().unwrap().is_some() {}
        assert!(reader.next_record().unwrap().is_none());
        let before = bytes_read();
        for _ in 0..10 {
            assert!(reader.next_record().unwrap().is_none());
        }
        let each = (bytes_read() - before) / 10;
        assert!(each < 512 << 10, "recycled {recycled}: {each} bytes");
        for _ in 0..3 {
            let lsn = log.append(b"more").unwrap().wait().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(reader.next_record().unwrap().unwrap().lsn(), lsn);
            assert!(reader.next_record().unwrap().is_none());
        }
    }
}
