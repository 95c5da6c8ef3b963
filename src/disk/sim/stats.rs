//! What happened on a simulated disk, by kind.

macro_rules! counts {
    ($(#[$head:meta])* $vis:vis struct $type:ident {
        work { $($(#[$work_doc:meta])* $work:ident,)* }
        faults { $($(#[$fault_doc:meta])* $fault:ident: $text:literal,)* }
    }) => {
        $(#[$head])*
        $vis struct $type {
            $($(#[$work_doc])* pub $work: u64,)*
            $($(#[$fault_doc])* pub $fault: u64,)*
        }

        impl $type {
            /// Every kind of fault in words, and how often it struck.
            pub fn faults(&self) -> Vec<(&'static str, u64)> {
                vec![$(($text, self.$fault)),*]
            }

            /// Adds what happened on another disk.
            pub fn add(&mut self, other: &$type) {
                $(self.$work += other.$work;)*
                $(self.$fault += other.$fault;)*
            }
        }
    };
}

counts! {
    /// What happened on a [`SimDisk`](super::SimDisk) since it was made, or copied by
    /// [`SimDisk::fork`](super::SimDisk::fork): the operations that were asked for, and the faults.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    #[allow(missing_docs)]
    pub struct SimStats {
        work {
            reads,
            writes,
            write_bytes,
            /// Of `writes`, those asked to be durable by themselves.
            durable_writes,
            syncs,
            dir_syncs,
            size_changes,
            creates,
            renames,
            removes,
            locks,
            /// Operations that failed on command, by chance, for want of space, or at a spoiled sector.
            failures,
            /// Pending writes, or parts of one, that a crash kept whole.
            writes_kept,
            /// Bytes of writes that went to another place.
            misdirected_bytes,
        }
        faults {
            crashes: "crashes",
            kills: "kills",
            writes_dropped: "unsynced writes dropped",
            writes_torn: "writes torn",
            sizes_dropped: "sizes dropped",
            names_dropped: "directory entries dropped",
            /// Completions that were held back while others went on.
            withheld: "completions withheld",
            /// Completions that came before that of an operation submitted earlier.
            reordered: "completions reordered",
            split: "writes applied in parts",
            failed_reads: "reads failed",
            failed_writes: "writes failed",
            short_writes: "short writes",
            failed_syncs: "syncs failed",
            failed_dir_syncs: "directory syncs failed",
            failed_creates: "creates failed",
            failed_opens: "opens failed",
            failed_renames: "renames failed",
            failed_removes: "removes failed",
            failed_sizes: "size changes failed",
            failed_locks: "locks failed",
            failed_lists: "listings failed",
            /// Of all failures, those with ENOSPC.
            no_space: "ENOSPC",
            misdirected_writes: "writes misdirected",
            flips: "bits flipped",
            corrupted_sectors: "sectors turned to noise",
            spoiled_sectors: "sectors spoiled",
            /// Reads that met a spoiled sector.
            latent_errors: "latent read errors",
        }
    }
}
