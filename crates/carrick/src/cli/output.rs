//! Where a command's result goes: tables for people, JSON or YAML for programs; colour only on a terminal.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use serde::Serialize;

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    // Plain comments: a doc comment would make clap spread every --help over six more lines.
    // Tables and sentences.
    #[default]
    #[value(alias = "zone")]
    Human,
    // JSON, indented.
    Json,
    Yaml,
}

/// Writes results to standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// The form asked for.
    pub(crate) format: Format,
    /// How text for people is marked.
    pub(crate) style: Style,
}

impl Output {
    /// Colour only when standard output is a terminal and nobody asked for none.
    pub(crate) fn new(format: Format) -> Self {
        Self { format, style: Style::of(&io::stdout()) }
    }

    /// Whether a program reads this.
    pub(crate) fn is_machine(&self) -> bool {
        self.format != Format::Human
    }

    /// Prints `value` for programs, or what `human` makes of it for people.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Human => human(value, self.style),
            Format::Json => serde_json::to_string_pretty(value)? + "\n",
            Format::Yaml => serde_yaml::to_string(value)?,
        };
        print(&text)
    }
}

/// Writes to standard output. A reader that has gone away (`| head`) has seen enough: that is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(err.into()),
        _ => Ok(()),
    }
}

/// A remark to the person at the terminal, kept out of the result. Nobody may be listening, and that is fine.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Marks text with ANSI colours, or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

/// What a piece of text is meant to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mark {
    /// Nothing particular.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Look at this.
    Warning,
    /// This does not work.
    Bad,
    /// Less important.
    Quiet,
}

impl Style {
    /// The style for what is written to `stream`. An empty `NO_COLOR` counts as unset (no-color.org).
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self { colour: stream.is_terminal() && !unwanted && !dumb }
    }

    #[cfg(test)]
    pub(crate) fn coloured() -> Self {
        Self { colour: true }
    }

    /// Whether it uses colour.
    pub(crate) fn is_coloured(self) -> bool {
        self.colour
    }

    /// `text` with its mark.
    pub(crate) fn paint(self, mark: Mark, text: impl fmt::Display) -> String {
        let code = match mark {
            Mark::Heading => "1",
            Mark::Good => "32",
            Mark::Warning => "33",
            Mark::Bad => "31",
            Mark::Quiet => "2",
            Mark::Plain => return text.to_string(),
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colour_a_mark_adds_nothing() {
        for mark in [Mark::Plain, Mark::Heading, Mark::Good, Mark::Warning, Mark::Bad, Mark::Quiet] {
            assert_eq!(Style::default().paint(mark, "x"), "x");
        }
        assert_eq!(Style::coloured().paint(Mark::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Style::coloured().paint(Mark::Plain, "x"), "x");
    }
}
