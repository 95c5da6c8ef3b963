//! What a command ends with: [`Failure`] carries the message for standard error and the exit code.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use uringlog::{AppendError, CloseError, CursorError, OpenError, ReadError, WaitError};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Code 1: something failed; the message says what.
    Failed(String),
    /// Code 2: the arguments ask for something that cannot be.
    Usage(String),
    /// Code 3: acknowledged data is damaged.
    Damage(String),
    /// Code 4: the machine cannot do what was asked for.
    Unsupported(String),
    /// Code 5: another process has the log open for writing.
    Locked(String),
    /// The reader of standard output went away. It has what it wanted: no message, code 0.
    OutputClosed,
}

impl Failure {
    /// A failure of reading `what`.
    pub fn reading(what: &dyn Display, error: &io::Error) -> Self {
        Failure::Failed(format!("cannot read {what}: {error}"))
    }

    /// A failure of an operation of the benchmark on one of its own files.
    pub fn file(action: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Failure::Failed(format!("cannot {action} {}: {error}", path.display()))
    }

    /// A failure of writing to standard output.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}

/// Reports the failure, if any, on standard error, and gives the process its exit code.
pub fn code(result: Result<(), Failure>) -> ExitCode {
    let (code, message) = match result {
        Ok(()) | Err(Failure::OutputClosed) => return ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Damage(message)) => (3, message),
        Err(Failure::Unsupported(message)) => (4, message),
        Err(Failure::Locked(message)) => (5, message),
    };
    note(&message);
    ExitCode::from(code)
}

/// Prints the text, and ends with the verdict on what it tells of: that nobody reads to the end does not make
/// damage good.
pub fn print(text: &str, verdict: Result<(), Failure>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::output(&error)),
        Err(error) if verdict.is_ok() => Err(Failure::output(&error)),
        _ => verdict,
    }
}

/// Prints a line on standard error. That it may be closed is no reason to stop.
pub fn note(message: &dyn Display) {
    _ = writeln!(io::stderr(), "uringlog: {message}");
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let message = error.to_string();
        match error {
            OpenError::InvalidOption { .. } => Failure::Usage(message),
            OpenError::Damaged(_) => Failure::Damage(message),
            OpenError::Unsupported { .. } => Failure::Unsupported(message),
            OpenError::Locked { .. } => Failure::Locked(message),
            _ => Failure::Failed(message),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(damage) => Failure::Damage(damage.to_string()),
            error => Failure::Failed(error.to_string()),
        }
    }
}

impl From<CursorError> for Failure {
    fn from(error: CursorError) -> Self {
        match error {
            CursorError::Damaged(damage) => Failure::Damage(damage.to_string()),
            CursorError::InvalidName { .. } => Failure::Usage(error.to_string()),
            error => Failure::Failed(error.to_string()),
        }
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        Failure::Failed(error.to_string())
    }
}

impl From<WaitError> for Failure {
    fn from(error: WaitError) -> Self {
        Failure::Failed(error.to_string())
    }
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        Failure::Failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code() {
        let dir = std::path::PathBuf::from("d");
        let unsupported = OpenError::Unsupported { what: "no".to_owned(), fix: "buy one" };
        assert!(matches!(Failure::from(unsupported), Failure::Unsupported(_)));
        let locked = OpenError::Locked { dir: dir.clone(), holder: None };
        assert!(matches!(Failure::from(locked), Failure::Locked(_)));
        assert!(matches!(Failure::from(OpenError::NotFound { dir }), Failure::Failed(_)));
        let coded = |failure| format!("{:?}", code(Err(failure)));
        let text = String::new;
        let expected = |value: u8| format!("{:?}", ExitCode::from(value));
        assert_eq!(coded(Failure::OutputClosed), expected(0));
        assert_eq!(coded(Failure::Failed(text())), expected(1));
        assert_eq!(coded(Failure::Usage(text())), expected(2));
        assert_eq!(coded(Failure::Damage(text())), expected(3));
        assert_eq!(coded(Failure::Unsupported(text())), expected(4));
        assert_eq!(coded(Failure::Locked(text())), expected(5));
    }
}
