//! From the newest record to the oldest.

use super::*;

fn back(store: &Arc<MemStore>, from: u64, durable: u64) -> BackReader {
    let store: Arc<dyn Store> = store.clone();
    let watermark = Watermark::Told(Box::new(move || durable));
    BackReader::with(store, watermark, Lsn::new(from)).expect("a reader")
}

fn drain_back(reader: &mut BackReader) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(record) = reader.next_record().expect("intact records") {
        assert_eq!(record.payload(), payload(record.lsn().get()), "record {}", record.lsn());
        numbers.push(record.lsn().get());
    }
    numbers
}

fn down(from: u64, to: u64) -> Vec<u64> {
    (to..=from).rev().collect()
}

#[test]
fn it_is_the_log_in_reverse_whatever_the_footers_say() {
    for kind in 0..4 {
        let (store, last) = sparse_log();
        match kind {
            0 => {}
            1 => write_footers(&store, last, |_| {}),
            2 => write_footers(&store, last, |footer| {
                footer.entries.iter_mut().for_each(|entry| entry.offset += 512);
            }),
            _ => write_footers(&store, last, |footer| {
                footer.entries.iter_mut().skip(1).for_each(|entry| entry.first_lsn -= 1);
            }),
        }
        assert_eq!(drain_back(&mut back(&store, 0, last)), down(last, 1), "kind {kind}");
        for from in (1..=last).step_by(17) {
            let mut reader = back(&store, from, last);
            for lsn in down(from, from.saturating_sub(5).max(1)) {
                assert_eq!(
                    reader.next_record().expect("reads").expect("is there").lsn().get(),
                    lsn
                );
                assert_eq!(reader.next_lsn().get(), lsn - 1);
            }
        }
    }
}

#[test]
fn it_starts_at_what_is_durable_and_ends_at_the_trim_point() {
    let (store, writer) = log(60);
    let last = writer.next_lsn - 1;
    for durable in 0..=last {
        let numbers = drain_back(&mut back(&store, 0, durable));
        assert_eq!(numbers, down(durable, 1), "{durable}");
        assert_eq!(drain_back(&mut back(&store, last + 9, durable)).len() as u64, durable);
    }
    let mut reader = back(&store, 0, last);
    reader.next_record().expect("reads").expect("a record");
    let first = last / 2;
    let view = live(&store, 1, last).view;
    let epoch = view.segment_of(first, &view.bounds().expect("bounds")).expect("reads");
    mark(&store, Mark { first_epoch: epoch, first_lsn: first, ..Mark::new() });
    (1..epoch).for_each(|epoch| store.remove(&segment_name(epoch)).expect("removes"));
    assert_eq!(drain_back(&mut reader), down(last - 1, first));
    assert_eq!(drain_back(&mut back(&store, first, last)), [first]);
    let dyn_store: Arc<dyn Store> = store.clone();
    let watermark = Watermark::Told(Box::new(move || last));
    let below = BackReader::with(dyn_store, watermark, Lsn::new(first - 1));
    assert!(matches!(below, Err(ReadError::Trimmed { first: f }) if f.get() == first));
}

#[test]
fn it_goes_over_recoveries() {
    let store = MemStore::new(4096);
    for round in 0..40u64 {
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        for batch in 0..round % 4 {
            write(&mut writer, batch + 1);
        }
        if round % 5 == 0 {
            writer.close();
        } else if round % 5 == 1 && writer.offset < SEGMENT_BYTES {
            let name = segment_name(writer.header.epoch);
            store.alter(&name, writer.offset as usize, 512, |_| 0x33);
        }
    }
    let last = open(&store, SEGMENT_BYTES).expect("opens").next_lsn - 1;
    assert_eq!(drain_back(&mut back(&store, 0, last)), down(last, 1));
}

#[test]
fn damage_is_named_and_what_is_below_can_be_read() {
    for with_footers in [false, true] {
        for in_header in [false, true] {
            let (store, last) = sparse_log();
            if with_footers {
                write_footers(&store, last, |_| {});
            }
            let target = last / 3;
            let mut reader = live(&store, target, last);
            reader.next_record().expect("reads").expect("a record");
            let batch = reader.batch.as_ref().expect("in a batch").batch;
            let epoch = batch.header.context.epoch;
            let at = batch.header.offset as usize + if in_header { 50 } else { 100 };
            store.alter(&segment_name(epoch), at, 1, |byte| byte ^ 1);
            let mut reader = back(&store, 0, last);
            let mut lowest = last + 1;
            let damage = loop {
                match reader.next_record() {
                    Ok(record) => lowest = record.expect("damage comes first").lsn().get(),
                    Err(ReadError::Damaged(damage)) => break damage,
                    Err(other) => panic!("{other}"),
                }
            };
            assert!(matches!(reader.next_record(), Err(ReadError::Damaged(_))), "it stays");
            let (from, to) = damage.lost.expect("known");
            assert_eq!(to.get(), lowest - 1);
            assert_eq!(from.get(), batch.header.first_lsn);
            assert!(in_header || to.get() == batch.header.last_lsn());
            let rest = drain_back(&mut back(&store, from.get() - 1, last));
            assert_eq!(rest, down(from.get() - 1, 1));
        }
    }
}
