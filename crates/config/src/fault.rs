//! What is wrong with a config, and where.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// One thing that is wrong: where it stands, what it is, what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key: `exports[0].allow[1]`. Empty when the fault is not one of a key.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// All that is wrong with one config, in the order of the text. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// The file, when the text came from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    faults: Vec<Fault>,
}

/// Why a config file gave no config.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read: give the right path with `-c`, or the right to read it.
    #[error("cannot read the config file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is read, and its content is wrong: all of it is listed.
    #[error("{0}")]
    Faults(Faults),
}

impl LoadError {
    /// The faults of the content, when the file could be read.
    pub fn faults(&self) -> Option<&Faults> {
        match self {
            Self::Faults(faults) => Some(faults),
            Self::Read { .. } => None,
        }
    }

    /// What the operator can do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "name the file with `-c FILE` and make sure this user may read it",
            Self::Faults(_) => {
                "mend each line above; `carrick check -c FILE` tries again without starting anything"
            }
        }
    }
}

/// Longest quotation of the text in a message, in characters.
const SHOWN: usize = 60;

/// A piece of the text as a message quotes it: bounded, and printable.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    printable(&out)
}

/// The text without what could move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

impl Fault {
    /// The same fault with what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl Faults {
    /// A fault that ended the reading.
    pub(crate) fn one(fault: Fault) -> Self {
        Self { file: None, faults: vec![fault] }
    }

    /// These faults in the order of the text, or `None` when there are none.
    pub(crate) fn of(mut faults: Vec<Fault>) -> Option<Self> {
        faults.sort_by_key(|fault| (fault.line, fault.column));
        (!faults.is_empty()).then_some(Self { file: None, faults })
    }

    /// The same faults, as those of `file`.
    pub(crate) fn in_file(self, file: &Path) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }

    /// The faults, in the order of the text.
    pub fn as_slice(&self) -> &[Fault] {
        &self.faults
    }

    /// The file, when the text came from one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl std::error::Error for Faults {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, ", {hint}"))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            if let Some(file) = &self.file {
                write!(f, "{}:", file.display())?;
            }
            writeln!(f, "{fault}")?;
        }
        match self.faults.len() {
            1 => f.write_str("1 fault"),
            n => write!(f, "{n} faults"),
        }
    }
}
