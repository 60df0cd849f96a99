//! Columns as wide as their widest cell, two spaces between them, nothing after the last.

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: clean(&text.into()), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// One line, and no control characters: what containers and users wrote must not steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Table {
    pub fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// A row of as many cells as the header has; a shorter one leaves the rest empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Nothing is cut off, however narrow the terminal: the last column says why, and that must be readable.
    pub fn render(&self) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.width()).collect();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate().take(widths.len()) {
                widths[column] = widths[column].max(cell.text.width());
            }
        }
        let header: Vec<Cell> = self.header.iter().map(|title| Cell::styled(*title, super::style::STRONG)).collect();
        std::iter::once(&header).chain(&self.rows).map(|row| line(row, &widths)).collect()
    }
}

fn line(row: &[Cell], widths: &[usize]) -> String {
    let mut out = String::new();
    let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
    for (column, Cell { text, style }) in row.iter().enumerate().take(last + 1) {
        out.push_str(&format!("{style}{text}{style:#}"));
        if column < last {
            out.extend(std::iter::repeat_n(' ', widths[column] - text.width() + 2));
        }
    }
    out.push('\n');
    out
}

/// The text, or its beginning and an ellipsis.
pub fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let width = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used + width + 1 > room {
            break;
        }
        used += width;
        out.push(c);
    }
    if room > 0 {
        out.push('…');
    }
    out
}
