use std::sync::Arc;
use std::thread;

use super::*;
use crate::Options;
use crate::mark::MarkFile;
use crate::testing::{MemStore, TestWriter};

const FILE: &str = "c.cursor";

/// A log of ten records, closed.
fn ten_records() -> Arc<MemStore> {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, 16 << 10);
    for _ in 0..10 {
        writer.batch(&[b"record"]);
    }
    writer.close();
    store
}

fn open(store: &Arc<MemStore>) -> Result<Cursor, CursorError> {
    Cursor::open(Place::of_dir(store.clone())?, "c")
}

fn position(store: &Arc<MemStore>) -> u64 {
    let place = Place::of_dir(store.clone()).expect("there is a log");
    look(&place, "c").expect("it is readable").expect("it is there")
}

/// Makes the mark say something else.
fn mark(store: &Arc<MemStore>, change: impl FnOnce(&mut Mark)) {
    let place = Place::of_dir(store.clone()).expect("there is a log");
    let mut file = MarkFile::open_or_create(&**store, place.log_id, Mark::new()).expect("it opens");
    let mut mark = *file.get();
    change(&mut mark);
    file.set(&**store, mark).expect("it is written");
}

#[test]
fn names() {
    let longest = "x".repeat(100);
    for name in ["a", "9", "_", "a.b-c_D", "a..", longest.as_str()] {
        assert!(is_name(name), "{name}");
    }
    let too_long = "x".repeat(101);
    for name in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", too_long.as_str()] {
        assert!(!is_name(name), "{name}");
        let refused = open_named(name).expect_err("it is no name");
        assert!(matches!(refused, CursorError::InvalidName { .. }), "{refused}");
    }
}

fn open_named(name: &str) -> Result<Cursor, CursorError> {
    Cursor::open(Place::of_dir(ten_records())?, name)
}

#[test]
fn a_cursor_moves_within_what_the_log_holds() {
    let store = ten_records();
    let mut cursor = open(&store).expect("it is made");
    assert_eq!((cursor.name(), cursor.position()), ("c", Lsn::FIRST));
    cursor.advance(Lsn::new(4)).expect("it moves");
    cursor.advance(Lsn::new(2)).expect("it stays");
    assert_eq!(cursor.position(), Lsn::new(4));
    cursor.set(Lsn::new(2)).expect("it goes back");
    cursor.advance(Lsn::new(11)).expect("one behind the last");
    let beyond = cursor.advance(Lsn::new(12)).expect_err("too far");
    assert!(
        matches!(beyond, CursorError::BeyondEnd { durable } if durable.get() == 10),
        "{beyond}"
    );
    assert!(matches!(cursor.set(Lsn::new(12)), Err(CursorError::BeyondEnd { .. })));
    assert_eq!((cursor.position().get(), position(&store)), (11, 11));

    mark(&store, |mark| mark.first_lsn = 5);
    let trimmed = cursor.set(Lsn::new(4)).expect_err("it is gone");
    assert!(matches!(trimmed, CursorError::Trimmed { first } if first.get() == 5), "{trimmed}");
    cursor.set(Lsn::NONE).expect("the first there is");
    assert_eq!((cursor.position().get(), position(&store)), (5, 5));
    assert_eq!(open(&store).expect("it opens").position().get(), 5);
    let other = Cursor::open(Place::of_dir(store.clone()).expect("a log"), "d").expect("made");
    assert_eq!(other.position().get(), 5);
}

#[test]
fn only_what_is_vouched_for_is_passed_from_outside() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, 16 << 10);
    writer.batch(&[b"1", b"2", b"3"]);
    writer.sync_then_batch(&[b"4"]);
    let mut cursor = open(&store).expect("it is made");
    cursor.advance(Lsn::new(4)).expect("three are vouched for");
    assert!(matches!(cursor.advance(Lsn::new(5)), Err(CursorError::BeyondEnd { .. })));
    writer.close();
    cursor.advance(Lsn::new(5)).expect("all four are");
}

#[test]
fn two_handles_never_take_a_cursor_back() {
    let store = ten_records();
    let (mut one, mut two) = (open(&store).expect("made"), open(&store).expect("opened"));
    one.advance(Lsn::new(7)).expect("it moves");
    assert_eq!(two.position(), Lsn::FIRST);
    two.advance(Lsn::new(5)).expect("it stays");
    assert_eq!((two.position().get(), position(&store)), (7, 7));
    two.advance(Lsn::new(8)).expect("it moves");
    one.advance(Lsn::new(9)).expect("it moves");
    assert_eq!(position(&store), 9);

    remove(&two.place, "c").expect("it is removed");
    assert!(matches!(one.advance(Lsn::new(10)), Err(CursorError::NotFound { .. })));
    assert!(matches!(remove(&two.place, "c"), Err(CursorError::NotFound { .. })));
    assert_eq!(open(&store).expect("made anew").position(), Lsn::FIRST);
}

#[test]
fn all_cursors_are_listed_and_the_lowest_is_known() {
    let store = ten_records();
    assert_eq!(lowest_position(&*store).expect("readable"), None);
    for (name, position) in [("b", 7), ("a", 3), ("a.b", 11)] {
        let place = Place::of_dir(store.clone()).expect("a log");
        let mut cursor = Cursor::open(place, name).expect("it is made");
        cursor.set(Lsn::new(position)).expect("it is set");
    }
    // None of these is a cursor.
    for name in [".cursor", "x.cursor.tmp", "-x.cursor", "cursor"] {
        store.put(name, vec![1; 100]);
    }
    let place = Place::of_dir(store.clone()).expect("a log");
    let infos = list(&place).expect("readable");
    let infos: Vec<_> = infos.iter().map(|info| (&*info.name, info.position.get())).collect();
    assert_eq!(infos, [("a", 3), ("a.b", 11), ("b", 7)]);
    assert_eq!(lowest_position(&*store).expect("readable"), Some(3));

    clamp(&*store, 6).expect("it works");
    let infos = list(&place).expect("readable");
    assert_eq!(infos.iter().map(|info| info.position.get()).collect::<Vec<_>>(), [3, 7, 7]);

    // A cursor that cannot be read may need anything.
    store.alter("a.cursor", 50, 1, |byte| byte ^ 1);
    store.alter("a.cursor", 65536 + 50, 1, |byte| byte ^ 1);
    assert!(matches!(lowest_position(&*store), Err(ScanError::Damaged(_))));
    assert!(matches!(list(&place), Err(CursorError::Damaged(_))));
    assert!(matches!(clamp(&*store, 1), Err(ScanError::Damaged(_))));
    assert_eq!(look(&place, "a.b").expect("readable"), Some(2), "the others are clamped");
    remove(&place, "a").expect("it can be removed");
    assert_eq!(lowest_position(&*store).expect("readable"), Some(2));
}

#[test]
fn the_cursor_of_another_log_is_refused() {
    let (store, other) = (ten_records(), MemStore::new(512));
    TestWriter::open(&other, 16 << 10).close();
    let mut file = SlotFile::create(&*store, FILE, Kind::Cursor, LogId([9; 16]), &[1; 8]);
    assert!(file.is_ok());
    assert!(matches!(open(&store), Err(CursorError::Foreign { .. })));
    let place = Place::of_dir(store.clone()).expect("a log");
    assert!(matches!(look(&place, "c"), Err(CursorError::Foreign { .. })));
    for content in [&[1; 7][..], &[0; 8]] {
        file = SlotFile::create(&*store, FILE, Kind::Cursor, place.log_id, content);
        assert!(file.is_ok());
        assert!(matches!(open(&store), Err(CursorError::Damaged(_))));
    }
    let nothing = Place::of_dir(MemStore::new(512));
    assert!(matches!(nothing, Err(CursorError::NoLog { .. })));
}

#[test]
fn after_a_truncation_a_handle_does_not_pass_what_it_has_not_seen() {
    let store = ten_records();
    let mut cursor = open(&store).expect("it is made");
    cursor.advance(Lsn::new(9)).expect("it moves");
    mark(&store, |mark| {
        // The segment that begins it is trimmed already: it is complete.
        *mark = Mark { generation: 1, generation_epoch: 0, truncated_after: 5, ..*mark };
    });
    clamp(&*store, 5).expect("it works");
    let cut = cursor.advance(Lsn::new(10)).expect_err("nine was cut");
    assert!(matches!(cut, CursorError::Truncated { last } if last.get() == 5), "{cut}");
    assert_eq!(cursor.position().get(), 6);
    cursor.advance(Lsn::new(7)).expect("it has seen what is there now");

    // Two truncations since: the earlier one cut lower.
    cursor.advance(Lsn::new(10)).expect("it moves");
    clamp(&*store, 3).expect("it works");
    mark(&store, |mark| *mark = Mark { generation: 3, truncated_after: 8, ..*mark });
    let cut = cursor.advance(Lsn::new(8)).expect_err("seven was cut and is another one");
    assert!(matches!(cut, CursorError::Truncated { last } if last.get() == 3), "{cut}");
    assert_eq!(cursor.position().get(), 4);
}

/// Stopped after every single change: a cursor has its old position or its new one, and an error said
/// so; what returned Ok is there.
#[test]
fn a_stop_at_any_change_leaves_one_of_the_two_positions() {
    type Change = fn(&mut Cursor) -> Result<(), CursorError>;
    let changes: [(Change, u64); 2] =
        [(|c| c.advance(Lsn::new(8)), 8), (|c| c.set(Lsn::new(2)), 2)];
    for (change, to) in changes {
        for stop in 0.. {
            let store = ten_records();
            let mut cursor = open(&store).expect("it is made");
            cursor.advance(Lsn::new(5)).expect("it moves");
            store.stop_after(stop);
            let changed = change(&mut cursor);
            store.stop_after(i64::MAX);
            let stands = position(&store);
            match changed {
                Ok(()) => assert_eq!(stands, to),
                Err(error) => {
                    assert!(matches!(error, CursorError::Io(_)), "{error}");
                    assert!([5, to].contains(&stands), "{stands}");
                }
            }
            // The handle goes on, and what it says then is so.
            cursor.advance(Lsn::new(9)).expect("it moves");
            assert_eq!((cursor.position().get(), position(&store)), (9, 9));
            if stop > 4 {
                break;
            }
        }
    }
    for stop in 0..12 {
        let store = ten_records();
        store.stop_after(stop);
        let made = open(&store).is_ok();
        store.stop_after(i64::MAX);
        let place = Place::of_dir(store.clone()).expect("a log");
        let found = look(&place, "c").expect("whole or not there");
        assert!(found == Some(1) || !made && found.is_none());
        open(&store).expect("it is made after all");
    }
}

#[test]
fn threads_advance_one_cursor_on_a_real_file_system() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    let options = Options::new().segment_bytes(1 << 20).buffered(true);
    let log = options.open(dir.path()).expect("it opens");
    for _ in 0..100 {
        log.append(b"record").expect("it is appended").wait().expect("it is durable");
    }
    let (log, path) = (&log, dir.path());
    let mut seen: Vec<u64> = Vec::new();
    thread::scope(|scope| {
        for first in 0..4 {
            scope.spawn(move || {
                // The one that goes to the end knows the end.
                let mut cursor = match first % 2 {
                    1 => log.cursor("c").expect("it opens"),
                    _ => Cursor::open_dir(path, "c").expect("it opens"),
                };
                for to in (first + 2..=101).step_by(4) {
                    let before = cursor.position();
                    match cursor.advance(Lsn::new(to)) {
                        Ok(()) => assert!(cursor.position().get() >= to),
                        // From outside the last batch may not be vouched for yet.
                        Err(CursorError::BeyondEnd { .. }) => assert!(first % 2 == 0),
                        Err(error) => panic!("{error}"),
                    }
                    assert!(cursor.position() >= before);
                }
            });
        }
        while seen.last() != Some(&101) {
            seen.extend(log.cursors().expect("readable").iter().map(|info| info.position.get()));
        }
    });
    assert!(seen.is_sorted(), "a cursor went back: {seen:?}");
    let infos = cursors(path).expect("readable");
    assert_eq!(infos, [CursorInfo { name: "c".to_owned(), position: Lsn::new(101) }]);
    log.remove_cursor("c").expect("it is removed");
    assert_eq!(log.cursors().expect("readable"), []);
}

#[test]
fn a_cursor_of_a_closed_log_looks_for_itself() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    let options = Options::new().segment_bytes(1 << 20).buffered(true);
    let log = options.clone().open(dir.path()).expect("it opens");
    log.append(b"record").expect("it is appended").wait().expect("it is durable");
    let mut cursor = log.cursor("c").expect("it is made");
    assert!(matches!(cursor.advance(Lsn::new(3)), Err(CursorError::BeyondEnd { .. })));
    log.close().expect("it closes");
    let log = options.clone().open(dir.path()).expect("it opens");
    log.append(b"record").expect("it is appended").wait().expect("it is durable");
    log.close().expect("it closes");
    cursor.advance(Lsn::new(3)).expect("another writer got that far");
    assert!(matches!(cursor.advance(Lsn::new(4)), Err(CursorError::BeyondEnd { .. })));
}

#[cfg(feature = "sim")]
mod power {
    use super::*;
    use crate::disk::sim::{SimDisk, SimOptions};

    fn place(disk: &SimDisk) -> Place {
        Place { store: disk.store(), log_id: LogId([4; 16]), writer: None, fork: ForkGuard::new() }
    }

    /// Power is cut, or the process killed, at every I/O boundary while a cursor moves, and again in
    /// the life after: it never stands lower than where a call that returned Ok left it, or where a
    /// trim saw it.
    #[test]
    fn a_position_that_was_told_survives() {
        for seed in 0..400 {
            let disk = SimDisk::new(seed, SimOptions::default());
            let mark = Mark { first_lsn: 1, ..Mark::new() };
            MarkFile::open_or_create(&*disk.store(), LogId([4; 16]), mark).expect("it is made");
            let mut told = 0;
            for life in 0..6 {
                let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (8 * life);
                let steps = if life == 0 { 40 } else { 1 + random % 23 };
                match (seed + life) % 3 {
                    0 => {
                        disk.crash_after(steps);
                        live(&disk, &mut told);
                        disk.crash();
                    }
                    // What a killed process wrote and did not sync stays visible for the next.
                    _ => {
                        disk.kill_after(steps);
                        live(&disk, &mut told);
                        disk.kill();
                    }
                }
                disk.restart();
                if told > 0 {
                    let place = place(&disk);
                    let found = look(&place, "c").expect("it is readable").expect("it is there");
                    assert!(found >= told, "seed {seed}, life {life}: {found} < {told}");
                }
            }
        }
    }

    fn live(disk: &SimDisk, told: &mut u64) -> Option<()> {
        let mut cursor = Cursor::open(place(disk), "c").ok()?;
        *told = cursor.position().get();
        // Nothing but the cursor is there: what is durable is known by other means.
        cursor.end = Some((0, u64::MAX - 1));
        for _ in 0..4 {
            let next = cursor.position().get() + 1;
            cursor.advance(Lsn::new(next)).ok()?;
            *told = next;
            // A trim looks at what may have been written and not synced.
            *told = lowest_position(&*disk.store()).ok()??.max(*told);
        }
        Some(())
    }
}
