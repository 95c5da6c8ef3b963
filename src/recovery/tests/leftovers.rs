//! What interrupted work left is swept when the log is opened; whatever else stands there is the user's.

use super::{SEGMENT_BYTES, crashed};
use crate::frame::segment_name;
use crate::testing::{MemStore, open};

#[test]
fn every_kind_of_leftover_is_swept_and_nothing_else() {
    let store = MemStore::new(4096);
    crashed(&store, 2, 0, 10);
    let names = store.names();
    let ours = [
        format!("{}.tmp", segment_name(1)),
        "log.mark.tmp".to_owned(),
        "truncation.tmp".to_owned(),
        "status.tmp".to_owned(),
        "consumer-7.cursor.tmp".to_owned(),
        "calibrate.tmp".to_owned(),
        "calibration.tmp".to_owned(),
        "direct-0-0.tmp".to_owned(),
        "direct-4194304-17.tmp".to_owned(),
    ];
    let theirs = [
        "notes.tmp",
        ".tmp",
        "tmp",
        "notes",
        "calibrate",
        "truncation",
        "calibrate.tmp.old",
        "log.mark.tmp2",
        "calibrations.tmp",
        "my-truncation.tmp",
        "log.lock.tmp",
        "cursor.tmp",
        ".cursor.tmp",
        "not a name.cursor.tmp",
        "-x.cursor.tmp",
        "direct-.tmp",
        "direct-7.tmp",
        "direct-7-.tmp",
        "direct--7.tmp",
        "direct-x-7.tmp",
        "direct-7-x.tmp",
        "direct-07-1.tmp",
        "direct-1-07.tmp",
        "direct-1-2-3.tmp",
        "direct-4294967296-1.tmp",
        "Direct-1-2.tmp",
    ];
    // Each alone, so that no other explains what happens to it.
    for name in &ours {
        store.put(name, vec![7; 4096]);
        assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").report.swept_files, 1, "{name}");
        assert_eq!(store.names(), names, "{name}");
    }
    for name in theirs {
        store.put(name, vec![7; 4096]);
        assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").report.swept_files, 0, "{name}");
        assert_eq!(store.bytes(name), [7; 4096], "{name}");
    }
    // And all at once.
    ours.iter().for_each(|name| store.put(name, Vec::new()));
    assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").report.swept_files, ours.len());
    assert_eq!(store.names().len(), names.len() + theirs.len());
}
