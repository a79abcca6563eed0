//! What the scripts say, as text: the traces behind each script, and the table of the docs.

use std::collections::BTreeSet;
use std::path::Path;

use crate::play::{LEVELS, Pace, Played};
use crate::script::{Script, TRACES};

/// The table lies between these lines of the page.
const BEGIN: &str = "<!-- anomalies -->";
const END: &str = "<!-- /anomalies -->";

/// A script with what came of it at each level, at each of its paces.
pub(crate) struct Shown {
    pub(crate) file: &'static Path,
    pub(crate) script: &'static Script,
    pub(crate) levels: Vec<Vec<(Pace, Played)>>,
}

impl Shown {
    /// The file as it should be: the script, and its traces. Levels with equal traces share one.
    pub(crate) fn text(&self) -> String {
        let mut groups: Vec<(Vec<String>, &Played)> = Vec::new();
        for (level, paces) in LEVELS.iter().zip(&self.levels) {
            let same = paces.iter().all(|(_, played)| *played == paces[0].1);
            for (pace, played) in paces.iter().take(if same { 1 } else { paces.len() }) {
                let pace = match pace {
                    _ if same => "",
                    Pace::AtOnce => " at once",
                    Pace::WithPauses => " with pauses",
                };
                let name = format!("{}{pace}", level.name);
                match groups.iter_mut().find(|(_, other)| *other == played) {
                    Some((names, _)) => names.push(name),
                    None => groups.push((vec![name], played)),
                }
            }
        }
        let mut text = format!("{}\n\n{TRACES}\n", self.script.head);
        for (names, played) in groups {
            let verdict = if played.possible { "possible" } else { "prevented" };
            text.push_str(&format!("{}: {verdict}\n{}\n", names.join(", "), played.trace));
        }
        format!("{}\n", text.trim_end())
    }

    fn row(&self) -> String {
        let cells: Vec<_> = self.levels.iter().map(|paces| cell(paces)).collect();
        format!("| {} | {} |\n", self.script.name, cells.join(" | "))
    }
}

/// `possible` if it happened at any pace; else what kept it away.
fn cell(paces: &[(Pace, Played)]) -> String {
    if paces.iter().any(|(_, played)| played.possible) {
        return "**possible**".to_owned();
    }
    let means = |played: &Played| {
        let words: Vec<_> = played.means.iter().copied().collect();
        if words.is_empty() { "version".to_owned() } else { words.join(" + ") }
    };
    let all: BTreeSet<_> = paces.iter().map(|(_, played)| means(played)).collect();
    format!("– {}", all.into_iter().collect::<Vec<_>>().join(" / "))
}

/// The page with the table that the scripts produce.
pub(crate) fn page_with_table(page: &str, all: &[Shown]) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("the page has no place for the table");
    let (_, after) = rest.split_once(END).expect("the place for the table has no end");
    let names: Vec<_> = LEVELS.iter().map(|level| level.name).collect();
    let mut table = format!("| anomaly | {} |\n|---{}|\n", names.join(" | "), "|---".repeat(LEVELS.len()));
    for shown in all {
        table.push_str(&shown.row());
    }
    format!("{before}{BEGIN}\n{table}{END}{after}")
}
