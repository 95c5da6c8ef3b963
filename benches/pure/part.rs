//! What a part is.

/// A part that is measured.
pub struct Part {
    /// GROUP/NAME; the same in every commit, so that two can be compared.
    pub name: &'static str,
    /// Operations in one pass.
    pub operations: u64,
    pub make: fn() -> Box<dyn Work>,
}

impl Part {
    pub fn new(name: &'static str, operations: u64, make: fn() -> Box<dyn Work>) -> Part {
        Part { name, operations, make }
    }
}

/// What is run over and over again.
pub trait Work {
    /// Puts back what a pass changed. Not measured.
    fn prepare(&mut self);
    /// One pass. Measured.
    fn run(&mut self);
}

/// A state, and what is done to it.
struct Passes<S> {
    state: S,
    prepare: fn(&mut S),
    run: fn(&mut S),
}

impl<S> Work for Passes<S> {
    fn prepare(&mut self) {
        (self.prepare)(&mut self.state);
    }

    fn run(&mut self) {
        (self.run)(&mut self.state);
    }
}

pub fn work<S: 'static>(state: S, prepare: fn(&mut S), run: fn(&mut S)) -> Box<dyn Work> {
    Box::new(Passes { state, prepare, run })
}
