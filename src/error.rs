//! The one error type that crosses rooms: what happened, and what the caller must do.
//!
//! Owns: the kinds, the exit-code table. Does not own: the typed errors of pure rooms (`pgoutput`,
//! `schema`), which are turned into this one where they leave their room.
//! Invariant: a message never carries a cell's value or a secret.

use std::fmt;

/// What the caller must do about an error. Retry and exit code are decided by this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Passing trouble (network, server restart, lost slot race): begin the session anew, with back-off.
    Retry,
    /// The command line is wrong.
    Usage,
    /// The configuration is refused.
    Config,
    /// The source is refused: slot lost or ahead, publication missing, no key. A person must act.
    Source,
    /// The lake is refused: unreadable watermark, foreign lake, no rights. A person must act.
    Lake,
    /// A newer writer holds the lake: stop at once, touch nothing.
    Fenced,
    /// `verify` or `check` found something.
    Found,
    /// An invariant is broken: a fault of this program.
    Bug,
}

impl Kind {
    /// Process exit code (contract, section 3).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Retry => 1,
            Kind::Usage => 2,
            Kind::Config => 3,
            Kind::Source => 4,
            Kind::Lake => 5,
            Kind::Fenced => 6,
            Kind::Found => 7,
            Kind::Bug => 70,
        }
    }
}

/// An error with its kind, a message for the person who must act, and its cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    /// Lines of their own, where there is more than one thing to say.
    details: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result with the crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {
        $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(Kind::$kind, message) })*
    };
}

impl Error {
    /// An error of `kind`; the message says what, where, and what to do next.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: Vec::new(), source: None }
    }

    constructors! {
        /// Passing trouble: retry.
        retry => Retry,
        /// Wrong command line.
        usage => Usage,
        /// Refused configuration.
        config => Config,
        /// Refused source.
        source_refused => Source,
        /// Refused lake.
        lake => Lake,
        /// Fenced by a newer writer.
        fenced => Fenced,
        /// Something was found.
        found => Found,
        /// Broken invariant.
        bug => Bug,
    }

    /// Attaches the cause; it is printed after the message, never repeated in it.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Attaches what is said in lines of its own, one thing each.
    pub fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// Puts what was being done before the message.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// What the caller must do.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether beginning anew may help.
    pub fn is_retry(&self) -> bool {
        self.kind == Kind::Retry
    }

    /// Message, all causes, and the details behind them in lines of their own.
    pub fn full(&self) -> String {
        self.lines().join("\n  ")
    }

    /// As [`Error::full`], line by line: to be printed one by one, for a line may hold text of others with line breaks of its own.
    pub fn lines(&self) -> Vec<String> {
        std::iter::once(self.headline()).chain(self.details.iter().cloned()).collect()
    }

    fn headline(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source.as_ref().map(|s| s.as_ref() as &dyn std::error::Error);
        while let Some(error) = cause {
            let one = error.to_string();
            if !text.contains(&one) {
                text.push_str(": ");
                text.push_str(&one);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}
