//! Tables for people: columns as wide as their widest cell, two blanks between them, nothing cut.

use crate::cli::output::{Mark, Style};

/// Between two columns.
const GAP: usize = 2;
/// Stands for a cell without content, so that every row has as many words as its heading.
const EMPTY: &str = "-";

/// Rows under headings.
#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

#[derive(Debug)]
struct Column {
    heading: &'static str,
    right: bool,
}

/// The content of one cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    mark: Mark,
}

impl Table {
    /// A table with these headings. One that ends in `>` is of numbers, aligned to the right.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let column = |h: &&'static str| match h.strip_suffix('>') {
            Some(heading) => Column { heading, right: true },
            None => Column { heading: h, right: false },
        };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new(), indent: 0 }
    }

    /// The same, moved in by so many blanks.
    pub(crate) fn indent(mut self, blanks: usize) -> Self {
        self.indent = blanks;
        self
    }

    /// Adds a row. Cells that are missing at its end are empty, cells too many are a mistake of ours.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut row: Vec<Cell> = cells.into_iter().collect();
        debug_assert!(row.len() <= self.columns.len(), "a row has more cells than the table has columns");
        row.resize(self.columns.len(), Cell::from(""));
        self.rows.push(row);
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, headings first, each line ended.
    pub(crate) fn render(&self, style: Style) -> String {
        let headings =
            self.columns.iter().map(|c| Cell { text: c.heading.to_owned(), mark: Mark::Heading }).collect();
        let has_headings = self.columns.iter().any(|c| !c.heading.is_empty());
        let lines: Vec<&Vec<Cell>> =
            std::iter::once(&headings).filter(|_| has_headings).chain(&self.rows).collect();
        let width = |i: usize| lines.iter().map(|l| l[i].width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        lines.iter().map(|line| self.line(line, &widths, style)).collect()
    }

    fn line(&self, cells: &[Cell], widths: &[usize], style: Style) -> String {
        let mut line = " ".repeat(self.indent);
        // Padding is written before the next cell, so no line ends in blanks.
        let mut owed = 0;
        for ((cell, column), width) in cells.iter().zip(&self.columns).zip(widths) {
            let padding = width - cell.width();
            let (before, after) = if column.right { (padding, 0) } else { (0, padding) };
            line.push_str(&" ".repeat(owed + before));
            line.push_str(&style.paint(cell.mark, cell.shown()));
            owed = after + GAP;
        }
        line.push('\n');
        line
    }
}

impl Cell {
    /// `text` with a mark.
    #[expect(clippy::needless_pass_by_value, reason = "callers have values and references alike")]
    pub(crate) fn marked(mark: Mark, text: impl ToString) -> Self {
        Self { text: text.to_string(), mark }
    }

    /// The value, or an empty cell.
    pub(crate) fn maybe(value: Option<impl ToString>) -> Self {
        Self { text: value.map(|v| v.to_string()).unwrap_or_default(), mark: Mark::Plain }
    }

    /// All of `items`, separated by commas.
    pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> Self {
        let texts: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
        Self { text: texts.join(", "), mark: Mark::Plain }
    }

    /// Any value as it prints itself.
    #[expect(clippy::needless_pass_by_value, reason = "callers have values and references alike")]
    pub(crate) fn of(value: impl ToString) -> Self {
        Self { text: value.to_string(), mark: Mark::Plain }
    }

    fn shown(&self) -> &str {
        if self.text.is_empty() { EMPTY } else { &self.text }
    }

    fn width(&self) -> usize {
        self.shown().chars().count()
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::of(text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, mark: Mark::Plain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_no_line_ends_in_blanks() {
        let mut table = Table::new(&["SERVICE", "FLOWS>", "STATE"]);
        table.row(["postgres@onprem.test".into(), Cell::of(7), "up".into()]);
        table.row(["a@b".into(), Cell::of(12_345), "".into()]);
        table.row(["c@d".into()]);
        assert_eq!(
            table.render(Style::default()),
            "\
SERVICE               FLOWS  STATE
postgres@onprem.test      7  up
a@b                   12345  -
c@d                       -  -
"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row([Cell::marked(Mark::Good, "up"), "x".into()]);
        table.row(["longer".into(), "y".into()]);
        let plain = table.render(Style::default());
        let mut painted = table.render(Style::coloured());
        for code in ["\x1b[1m", "\x1b[32m", "\x1b[0m"] {
            assert!(painted.contains(code));
            painted = painted.replace(code, "");
        }
        assert_eq!(painted, plain);
    }

    #[test]
    fn a_table_without_headings_has_rows_only() {
        let mut table = Table::new(&["", ""]).indent(2);
        table.row(["identity".into(), "x".into()]);
        assert_eq!(table.render(Style::default()), "  identity  x\n");
        assert!(Table::new(&["A"]).is_empty());
    }

    #[test]
    fn letters_are_counted_not_octets() {
        let mut table = Table::new(&["RTT>", "X"]);
        table.row(["5 µs".into(), "a".into()]);
        table.row(["50 ms".into(), "b".into()]);
        assert_eq!(table.render(Style::default()), "  RTT  X\n 5 µs  a\n50 ms  b\n");
    }
}
