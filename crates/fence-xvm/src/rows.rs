// SPDX-License-Identifier: GPL-2.0-or-later
//! Rows of a list, merged from several hosts.
//!
//! Owns the rows. Runs on the agent's only thread.
//!
//! A domain has one row, however many hosts name it. It is on when one of them says so: a host that the
//! domain has left may still know it as off. So a row that says "off", and all rows after it, wait until
//! every host has answered. Rows before it are printed as they come.
//!
//! Must never be given a part of a list: printed rows cannot be taken back.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};

use fence_wire::{HostListEntry, escaped};

use crate::output::unless_reader_gone;

/// Merged rows, printed to `W`.
#[derive(Debug)]
pub(crate) struct ListRows<W> {
    out: W,
    /// True if people read the rows: then one sorted table is printed at the end.
    table: bool,
    rows: Vec<HostListEntry>,
    /// Index in `rows` by UUID and name. A domain that hosts know by different names has a row for each,
    /// because a cluster may use any of them.
    indices: HashMap<(String, String), usize>,
    /// Number of `rows` that are printed.
    printed: usize,
}

impl ListRows<Box<dyn Write>> {
    /// Returns rows for standard output: a table at the end on a terminal, else rows as they come.
    pub(crate) fn to_stdout() -> Self {
        let out = io::stdout();
        let table = out.is_terminal();
        Self::new(Box::new(out), table)
    }
}

impl<W: Write> ListRows<W> {
    /// Returns an empty list of rows. `table`: all rows are printed at the end, sorted.
    pub(crate) fn new(out: W, table: bool) -> Self {
        Self { out, table, rows: Vec::new(), indices: HashMap::new(), printed: 0 }
    }

    /// Returns the merged rows.
    pub(crate) fn into_entries(self) -> Vec<HostListEntry> {
        self.rows
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds the whole list of one host, and prints the rows that no other host can change.
    ///
    /// # Errors
    /// Error of writing.
    pub(crate) fn add(&mut self, entries: Vec<HostListEntry>) -> io::Result<()> {
        for entry in entries {
            let identity = (entry.uuid.to_ascii_lowercase(), entry.name.clone());
            match self.indices.get(&identity) {
                Some(&index) => self.rows[index].on |= entry.on,
                None => {
                    self.indices.insert(identity, self.rows.len());
                    self.rows.push(entry);
                }
            }
        }
        if self.table {
            return Ok(());
        }
        let settled = self.rows[self.printed..].iter().take_while(|row| row.on).count();
        self.print(settled)
    }

    /// Prints the remaining rows, after all hosts have answered.
    ///
    /// # Errors
    /// Error of writing.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.table {
            self.rows.sort_by(|a, b| (&a.name, &a.uuid).cmp(&(&b.name, &b.uuid)));
        }
        self.print(self.rows.len() - self.printed)
    }

    /// Prints the next `count` rows, in one write where that is possible.
    fn print(&mut self, count: usize) -> io::Result<()> {
        let mut text = String::new();
        for row in &self.rows[self.printed..self.printed + count] {
            let (name, uuid) = (escaped(&row.name).to_string(), escaped(&row.uuid));
            let state = if row.on { "on" } else { "off" };
            text.push_str(&format!("{name:<32} {uuid} {state}\n"));
        }
        self.printed += count;
        unless_reader_gone(self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, uuid: &str, on: bool) -> HostListEntry {
        HostListEntry { name: name.to_owned(), uuid: uuid.to_owned(), on }
    }

    /// Returns the text printed after each list, and at the end.
    fn print_lists(table: bool, lists: &[Vec<HostListEntry>]) -> Vec<String> {
        let mut rows = ListRows::new(Vec::new(), table);
        let take = |rows: &mut ListRows<Vec<u8>>| String::from_utf8(std::mem::take(&mut rows.out)).unwrap();
        let mut printed = Vec::new();
        for list in lists {
            rows.add(list.clone()).unwrap();
            printed.push(take(&mut rows));
        }
        rows.finish().unwrap();
        printed.push(take(&mut rows));
        printed
    }

    const ROW_A: &str = "a                                1 on\n";
    const ROW_B: &str = "b                                2 off\n";
    const ROW_C: &str = "c                                3 on\n";

    /// Output that fails with this error.
    struct BrokenOutput(io::ErrorKind);

    impl Write for BrokenOutput {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        for (kind, fails) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::StorageFull, true)] {
            let mut rows = ListRows::new(BrokenOutput(kind), false);
            let added = rows.add(vec![entry("a", "1", true)]);
            assert_eq!(added.is_err(), fails, "{kind}");
            assert_eq!(rows.finish().is_err(), fails, "{kind}");
        }
    }

    #[test]
    fn one_host_s_order_is_kept() {
        let list = vec![entry("c", "3", true), entry("b", "2", false), entry("a", "1", true)];
        assert_eq!(print_lists(false, &[list]), [ROW_C.to_owned(), format!("{ROW_B}{ROW_A}")]);
    }

    #[test]
    fn on_if_any_host_says_so() {
        let (off, on) = (entry("a", "1", false), entry("a", "1", true));
        for lists in [[vec![off.clone()], vec![on.clone()]], [vec![on], vec![off]]] {
            assert_eq!(print_lists(false, &lists).concat(), ROW_A);
            assert_eq!(print_lists(true, &lists).concat(), ROW_A);
        }
    }

    #[test]
    fn the_same_is_uuid_and_name() {
        let lists = [vec![entry("a", "AB", true), entry("a", "AC", true)], vec![entry("a", "ab", true)]];
        assert_eq!(print_lists(false, &lists).concat().lines().count(), 2);
        let renamed = [vec![entry("a", "ab", true)], vec![entry("b", "ab", true)]];
        assert_eq!(print_lists(false, &renamed).concat().lines().count(), 2);
    }

    #[test]
    fn a_table_comes_at_the_end_and_sorted() {
        let lists = [vec![entry("c", "3", true), entry("b", "2", false)], vec![entry("a", "1", true)]];
        let whole = format!("{ROW_A}{ROW_B}{ROW_C}");
        assert_eq!(print_lists(true, &lists), [String::new(), String::new(), whole]);
    }

    proptest! {
        /// Each domain has one row, which is on exactly when one host says so; there are no other rows.
        #[test]
        fn merged_lists(
            lists in prop::collection::vec(prop::collection::vec(("[a-d]", any::<bool>()), 0..6), 0..5)
        ) {
            let lists: Vec<Vec<_>> =
                lists.iter().map(|l| l.iter().map(|(name, on)| entry(name, name, *on)).collect()).collect();
            for table in [false, true] {
                let text = print_lists(table, &lists).concat();
                let mut expected: Vec<_> = lists.concat().iter().map(|e| e.name.clone()).collect();
                expected.sort();
                expected.dedup();
                let mut names: Vec<_> = text.lines().map(|l| l.split_whitespace().next().unwrap()).collect();
                if !table {
                    names.sort_unstable();
                }
                prop_assert_eq!(&names, &expected);
                for line in text.lines() {
                    let name = line.split_whitespace().next().unwrap();
                    let on = lists.concat().iter().any(|e| e.name == name && e.on);
                    prop_assert_eq!(line.ends_with(" on"), on);
                }
            }
        }
    }
}
