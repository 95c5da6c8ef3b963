use super::*;

const CONTEXT: BatchContext = BatchContext { log_id: LogId([7; 16]), epoch: 3, salt: 0x1122_3344 };
const OFFSET: u64 = 4096;

/// A batch of these records as it stands on disk.
fn image(records: &[&[u8]]) -> Vec<u8> {
    let payloads = records.concat();
    let table: Vec<u8> = records
        .iter()
        .flat_map(|record| {
            let entry = TableEntry { len: record.len() as u32, crc: crc32c(record) };
            entry.to_bits().to_le_bytes()
        })
        .collect();
    let header = BatchHeader {
        context: CONTEXT,
        offset: OFFSET,
        first_lsn: 10,
        count: records.len() as u32,
        payload_bytes: payloads.len() as u32,
        wall_ns: 1,
        synced_lsn: 9,
        prev_crc: 5,
        table_crc: crc32c(&table),
    };
    let mut image = vec![0; header.disk_bytes(512) as usize];
    image[BATCH_HEADER_BYTES..][..payloads.len()].copy_from_slice(&payloads);
    image[header.table_offset()..][..table.len()].copy_from_slice(&table);
    header.encode(&mut image);
    image
}

fn check(image: &[u8], context: &BatchContext, offset: u64) -> Result<(), BatchError> {
    BatchHeader::decode(image, context, offset)?.0.verify_body(image)
}

#[test]
fn any_flipped_byte_of_a_batch_is_seen() {
    let whole = image(&[b"hello", b"world!"]);
    assert_eq!(check(&whole, &CONTEXT, OFFSET), Ok(()));
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        assert!(check(&flipped, &CONTEXT, OFFSET).is_err(), "byte {at}");
    }
}

#[test]
fn a_batch_counts_in_its_own_life_and_place_only() {
    let whole = image(&[b"hello"]);
    let others = [
        BatchContext { log_id: LogId([8; 16]), ..CONTEXT },
        BatchContext { epoch: 4, ..CONTEXT },
        BatchContext { salt: 0, ..CONTEXT },
    ];
    for other in others {
        assert_eq!(check(&whole, &other, OFFSET), Err(BatchError::OtherLife), "{other:?}");
    }
    assert_eq!(check(&whole, &CONTEXT, OFFSET + 512), Err(BatchError::OtherLife));
}

/// What a torn write leaves: the header of one batch, and the body of another that stood there before,
/// of the same sizes and intact in itself.
#[test]
fn the_body_of_another_batch_is_refused() {
    let (mut whole, before) = (image(&[b"hello", b"world!"]), image(&[b"HELLO", b"WORLD!"]));
    whole[BATCH_HEADER_BYTES..].copy_from_slice(&before[BATCH_HEADER_BYTES..]);
    assert_eq!(check(&whole, &CONTEXT, OFFSET), Err(BatchError::TableChecksum));
}
