//! What the fuzz targets share: an allocator that ends the process where memory is asked for out of
//! proportion, which a fuzzer then reports like a crash.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes of one allocation: no input, and no store made of one, is larger than some MiB.
const ONE_BYTES_MAX: usize = 16 << 20;
/// Most bytes that may live at once, libFuzzer's own tables not counted.
const ALL_BYTES_MAX: usize = 512 << 20;

/// The system's allocator, with limits.
pub struct Limited(AtomicUsize);

impl Limited {
    /// One that has given nothing yet.
    pub const fn new() -> Limited {
        Limited(AtomicUsize::new(0))
    }

    fn take(&self, bytes: usize) {
        let all = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if bytes > ONE_BYTES_MAX || all > ALL_BYTES_MAX {
            eprintln!("an allocation of {bytes} bytes, {all} in all: out of proportion");
            std::process::abort();
        }
    }
}

impl Default for Limited {
    fn default() -> Limited {
        Limited::new()
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.dealloc(start, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller's word.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.0.fetch_sub(layout.size(), Ordering::Relaxed);
        self.take(size);
        // SAFETY: the caller's word.
        unsafe { System.realloc(start, layout, size) }
    }
}

/// The program of one target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        #[global_allocator]
        static LIMITED: $crate::Limited = $crate::Limited::new();

        libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            uringlog::fuzzing::run($name, input);
        });
    };
}
