//! Rows of text in columns, for [`super::render`].

use std::fmt::Write as _;

/// Characters of the widest cell: an address fits, and a long text does not push the other columns
/// off the screen.
const WIDEST: usize = 60;

/// Where the text of a cell stands in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of text in columns as wide as they must be. A column in which nothing stands is left out.
pub(super) struct TextTable {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// An empty table with these columns.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> TextTable {
        TextTable {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows
            .push(cells.iter().map(|cell| one_line(cell)).collect());
    }
}

impl std::fmt::Display for TextTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let used: Vec<(usize, usize)> = (0..self.columns.len())
            .filter(|column| self.rows.is_empty() || width(*column) > 0)
            .map(|column| {
                (
                    column,
                    width(column).max(self.columns[column].0.chars().count()),
                )
            })
            .collect();
        let head: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for (column, width) in &used {
                let cell = &row[*column];
                match self.columns[*column].1 {
                    Align::Left => write!(line, "{cell:<width$}  ")?,
                    Align::Right => write!(line, "{cell:>width$}  ")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A cell is one line without control characters, whatever a peer or an application made of it, and
/// no wider than a screen bears.
fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    match text.chars().count() > WIDEST {
        false => text.chars().map(clean).collect(),
        true => text
            .chars()
            .take(WIDEST - 3)
            .map(clean)
            .chain("...".chars())
            .collect(),
    }
}
