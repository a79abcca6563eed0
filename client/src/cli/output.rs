//! Tables for people, JSON for programs.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::failure::{Failure, printed};

/// Where answers go, and in which shape.
pub(crate) struct Output<'a> {
    pub(crate) to: &'a mut (dyn Write + Send),
    pub(crate) json: bool,
}

impl Output<'_> {
    /// One answer: as JSON, or as the line that `text` makes of it.
    pub(crate) fn answer(&mut self, answer: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json {
            return self.object(answer);
        }
        printed(writeln!(self.to, "{}", text()))
    }

    /// A list: one JSON object a line, or a table.
    pub(crate) fn list<T: Serialize>(
        &mut self,
        header: &[&str],
        items: &[T],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.json {
            return items.iter().try_for_each(|item| self.object(item));
        }
        let table = table(header, items.iter().map(row));
        printed(table.lines().try_for_each(|line| writeln!(self.to, "{}", line.trim_end())))
    }

    pub(crate) fn object(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(object).map_err(|error| Failure::Data(error.to_string()))?;
        printed(writeln!(self.to, "{text}"))
    }
}

/// A table without lines, so that one line is one item; columns of numbers stand to the right.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let rows: Vec<Vec<String>> = rows.collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        let left = if i == 0 { 0 } else { 1 };
        column.set_padding((left, 1));
        let numbers = rows.iter().all(|row| row[i] == "-" || row[i].bytes().all(|byte| byte.is_ascii_digit()));
        if numbers && !rows.is_empty() {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    table
}
