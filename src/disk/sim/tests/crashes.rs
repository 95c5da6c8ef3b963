//! The ends of a life: crash points, kills, the same seed twice, and a model of what may survive.

use super::*;

/// Creates, fills and renames a file, and appends to it.
fn scenario(store: &Arc<dyn Store>) -> std::io::Result<()> {
    let file = store.create("a.tmp")?;
    file.allocate(4 * BLOCK)?;
    file.write_at(0, &block(1, 4))?;
    file.sync()?;
    store.rename("a.tmp", "f")?;
    store.sync_dir()?;
    let mut queue = queue(store);
    (0..4).for_each(|i| queue.submit(write(i, &file, i * BLOCK, 10 + i as u8, i % 2 == 0)));
    reap(&mut *queue, 4).into_iter().try_for_each(|done| done.result)
}

/// Against a model that knows, for each sector, which values may be there after a crash.
#[test]
fn what_survives_is_what_the_model_allows() {
    const SECTORS: u64 = 40;
    for seed in 0..SEEDS * 5 {
        let options = SimOptions { block_bytes: 512, depth: 4, ..SimOptions::default() };
        let disk = SimDisk::new(seed, options);
        let store = disk.store();
        let file = store.create("f").unwrap();
        file.allocate(SECTORS * 512).unwrap();
        file.sync().unwrap();
        store.sync_dir().unwrap();
        let mut queue = queue(&store);
        let mut rng = Rng::new(seed);
        let mut allowed = vec![vec![0]; SECTORS as usize];
        for value in 1..=rng.below(40) as u8 {
            let start = rng.below(SECTORS);
            let end = start + 1 + rng.below((SECTORS - start).min(12));
            let sectors = &mut allowed[start as usize..end as usize];
            let len = (end - start) as usize * 512;
            match rng.below(8) {
                0 => {
                    file.sync().unwrap();
                    allowed
                        .iter_mut()
                        .for_each(|values| *values = values.split_off(values.len() - 1));
                }
                1 | 2 => {
                    let kind = OpKind::Write {
                        offset: start * 512,
                        buf: block(value, 2),
                        len,
                        durable: true,
                    };
                    queue.submit(Op { token: 0, file: file.clone(), kind });
                    assert!(reap(&mut *queue, 1)[0].result.is_ok());
                    sectors.iter_mut().for_each(|values| *values = vec![value]);
                }
                _ => {
                    file.write_at(start * 512, &block(value, 2)[..len]).unwrap();
                    sectors.iter_mut().for_each(|values| values.push(value));
                }
            }
        }
        let visible = disk.read_raw("f").unwrap();
        for (sector, values) in visible.chunks(512).zip(&allowed) {
            assert_eq!(Some(&sector[0]), values.last(), "seed {seed}");
        }
        for (at, (value, values)) in sectors_after_crash(&disk).iter().zip(&allowed).enumerate() {
            assert!(values.contains(value), "seed {seed}, sector {at}: {value} not of {values:?}");
        }
    }
}

#[test]
fn every_crash_point_ends_the_life_and_frees_the_lock() {
    let (disk, store) = machine(3);
    scenario(&store).unwrap();
    let steps = disk.steps();
    assert_eq!(steps, 2 * (6 + 4), "two for each operation");
    for step in 1..=steps {
        let (disk, store) = machine(3);
        let lock = store.lock();
        assert!(lock.is_ok() && matches!(store.lock(), Err(LockError::Held(None))));
        disk.crash_after(step);
        assert!(scenario(&store).is_err() && disk.crashed(), "step {step}");
        assert_eq!(disk.steps(), step);
        assert!(store.list().is_err() && store.open("f", Access::Read).is_err());
        assert!(matches!(store.lock(), Err(LockError::Io(_))));
        disk.restart();
        assert!(store.list().is_err(), "an old handle lives");
        let again = disk.store().lock();
        assert!(again.is_ok());
        drop(lock);
        assert!(disk.store().lock().is_err(), "an old lock's end frees the new one");
        if step > 12 {
            assert_eq!(disk.files(), ["f"], "step {step}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let options = SimOptions { depth: 4, trace: true, ..SimOptions::default() };
        let disk = SimDisk::new(seed, options);
        disk.crash_after(1 + seed % 20);
        scenario(&disk.store()).unwrap_err();
        disk.restart();
        let files: Vec<_> =
            disk.files().into_iter().map(|name| (disk.read_raw(&name), name)).collect();
        (files, disk.trace(), disk.stats())
    };
    let runs: Vec<_> = (0..SEEDS).map(run).collect();
    assert!((0..SEEDS).map(run).eq(runs.iter().cloned()));
    assert_ne!(runs[13], runs[33], "another seed gives another run");
}

#[test]
fn a_killed_process_loses_nothing_that_completed() {
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        file.write_at(0, &block(2, 1)).unwrap();
        store.create("g").unwrap();
        let mut queue = queue(&store);
        queue.submit(write(1, &file, BLOCK, 3, true));
        disk.kill();
        assert!(reap(&mut *queue, 1)[0].result.is_err());
        disk.restart();
        assert_eq!(disk.files(), ["f", "g"]);
        let bytes = disk.read_raw("f").unwrap();
        assert!(bytes[0] == 2 && bytes[4096..8192].is_sorted(), "a write in flight is whole");
        disk.store().open("f", Access::Write).unwrap().sync().unwrap();
        assert_eq!(sectors_after_crash(&disk)[..8], [2; 8]);
    }
}

#[test]
fn a_dropped_queue_lets_its_writes_end() {
    let (disk, store) = machine(1);
    let file = durable_file(&store);
    let mut queue = queue(&store);
    queue.submit(write(1, &file, 0, 3, true));
    drop(queue);
    assert_eq!(sectors_after_crash(&disk)[..8], [3; 8]);
}
