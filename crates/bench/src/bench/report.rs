//! What the bench found: figures by name, a line of JSON for each cell as it comes, the Markdown
//! table of the medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::plan::{Link, Way};
use super::stats::median;

/// Figures of one cell, by the names in [`COLUMNS`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub(super) fn new() -> Figures {
        Figures::default()
    }

    pub(super) fn set(&mut self, name: &str, value: f64) {
        assert!(
            COLUMNS.iter().any(|column| column.name == name),
            "{name} is in no column"
        );
        self.0.insert(name.to_owned(), value);
    }

    pub(super) fn set_some(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The median of each figure over several runs, of those that have it.
    fn medians(runs: &[&Figures]) -> Figures {
        let names = COLUMNS.iter().map(|column| column.name);
        let medians = names.filter_map(|name| {
            let values = runs.iter().filter_map(|run| run.get(name)).collect();
            Some((name.to_owned(), median(values)?))
        });
        Figures(medians.collect())
    }
}

/// One cell of one run.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Its link's place in the plan.
    pub(super) link: usize,
    pub(super) way: Way,
    pub(super) run: usize,
    /// What was measured, also before something failed.
    pub(super) figures: Figures,
    pub(super) failed: Option<String>,
}

impl Record {
    /// One line of JSON.
    pub(super) fn line(&self, links: &[Link]) -> String {
        let mut object = serde_json::json!({
            "link": links[self.link].name(),
            "profile": links[self.link].profile.as_ref().map(ToString::to_string),
            "way": self.way.name(),
            "run": self.run + 1,
            "figures": self.figures,
        });
        if let Some(why) = &self.failed {
            object["failed"] = serde_json::json!(why);
        }
        format!("{object}\n")
    }
}

/// The medians of a way across a link.
pub(super) fn medians(records: &[Record], link: usize, way: Way) -> Figures {
    let runs: Vec<&Figures> = records
        .iter()
        .filter(|record| (record.link, record.way) == (link, way))
        .map(|record| &record.figures)
        .collect();
    Figures::medians(&runs)
}

/// The parts of the table: one as wide as all figures would be read by nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Bulk,
    Short,
    Datagrams,
    Cost,
}

impl Part {
    const ALL: [(Part, &str); 4] = [
        (Part::Bulk, "Bulk"),
        (Part::Short, "New connections and echoes"),
        (Part::Datagrams, "UDP"),
        (Part::Cost, "What it costs"),
    ];
}

struct Column {
    part: Part,
    name: &'static str,
    header: &'static str,
    digits: usize,
}

const fn column(part: Part, name: &'static str, header: &'static str, digits: usize) -> Column {
    Column {
        part,
        name,
        header,
        digits,
    }
}

/// Every figure, in the order of the table, with its heading.
const COLUMNS: &[Column] = &[
    column(Part::Bulk, "down_mbit", "down, Mbit/s", 1),
    column(Part::Bulk, "eta", "η", 3),
    column(Part::Bulk, "up_mbit", "up, Mbit/s", 1),
    column(Part::Bulk, "sixteen_mbit", "16 flows, Mbit/s", 1),
    column(Part::Bulk, "sixteen_jain", "Jain", 3),
    column(Part::Bulk, "wire", "wire / goodput", 3),
    column(Part::Bulk, "wire_back", "back / goodput", 3),
    column(Part::Bulk, "sixteen_wire", "16: wire / goodput", 3),
    column(Part::Bulk, "queue_mean_ms", "queue mean, ms", 1),
    column(Part::Bulk, "queue_max_ms", "queue max, ms", 1),
    column(Part::Bulk, "queue_drops_percent", "queue drops, %", 2),
    column(Part::Bulk, "ramp_s", "ramp, s", 2),
    column(Part::Short, "ttfb_p50_ms", "first byte p50, ms", 1),
    column(Part::Short, "ttfb_p95_ms", "p95", 1),
    column(Part::Short, "ttfb_p99_ms", "p99", 1),
    column(Part::Short, "object_p50_ms", "10 kB p50, ms", 1),
    column(Part::Short, "object_p95_ms", "p95", 1),
    column(Part::Short, "object_p99_ms", "p99", 1),
    column(Part::Short, "echo_p50_ms", "echo beside bulk p50, ms", 1),
    column(Part::Short, "echo_p99_ms", "p99", 1),
    column(Part::Short, "latency_us", "request-response, µs", 0),
    column(Part::Short, "connections_per_s", "connections/s", 0),
    column(
        Part::Datagrams,
        "stream_200_arrived",
        "20 Mbit/s of 200 bytes: arrived, %",
        3,
    ),
    column(Part::Datagrams, "stream_200_late_ms", "late p99, ms", 1),
    column(Part::Datagrams, "stream_200_wire", "wire / LAN bytes", 3),
    column(
        Part::Datagrams,
        "stream_1200_arrived",
        "of 1,200 bytes: arrived, %",
        3,
    ),
    column(Part::Datagrams, "stream_1200_late_ms", "late p99, ms", 1),
    column(Part::Datagrams, "stream_1200_wire", "wire / LAN bytes", 3),
    column(Part::Datagrams, "packets_per_s", "64-byte UDP/s", 0),
    column(Part::Cost, "idle_flows", "idle flows", 0),
    column(Part::Cost, "idle_flow_kb", "kB / idle flow", 1),
    column(Part::Cost, "cpu_s_per_gbit", "CPU s/Gbit", 3),
    column(Part::Cost, "sixteen_cpu_s_per_gbit", "16: CPU s/Gbit", 3),
    column(Part::Cost, "memory_mb", "memory, MB", 0),
    column(Part::Cost, "idle_percent", "idle, %", 0),
    column(Part::Cost, "sixteen_idle_percent", "16: idle, %", 0),
    column(Part::Cost, "lab_drops", "lab's own drops", 0),
];

/// The tables: a line for each way across each link that has been measured; only columns in which
/// something stands. What failed is listed below.
pub(super) fn table(links: &[Link], records: &[Record]) -> String {
    let mut rows = Vec::new();
    for (index, link) in links.iter().enumerate() {
        for way in Way::ALL {
            let figures = medians(records, index, way);
            if !figures.0.is_empty() {
                rows.push((link.name(), way, figures));
            }
        }
    }
    let mut text = String::new();
    for (part, heading) in Part::ALL {
        let measured = |column: &&Column| {
            rows.iter()
                .any(|(_, _, figures)| figures.get(column.name).is_some())
        };
        let columns: Vec<&Column> = COLUMNS
            .iter()
            .filter(|column| column.part == part)
            .filter(measured)
            .collect();
        if columns.is_empty() {
            continue;
        }
        let _ = write!(
            text,
            "{}**{heading}**\n\n| link | way |",
            if text.is_empty() { "" } else { "\n" }
        );
        for column in &columns {
            let _ = write!(text, " {} |", column.header);
        }
        let _ = writeln!(text, "\n|---|---|{}", "--:|".repeat(columns.len()));
        for (link, way, figures) in &rows {
            let _ = write!(text, "| {link} | {} |", way.name());
            for column in &columns {
                let _ = match figures.get(column.name) {
                    Some(value) => write!(text, " {value:.*} |", column.digits),
                    None => write!(text, " - |"),
                };
            }
            text.push('\n');
        }
    }
    for record in records {
        if let Some(why) = &record.failed {
            let _ = write!(
                text,
                "\nfailed: {}, {}, run {}: {why}\n",
                links[record.link].name(),
                record.way.name(),
                record.run + 1
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan;

    fn record(way: Way, run: usize, down: f64) -> Record {
        let mut figures = Figures::new();
        figures.set("down_mbit", down);
        Record {
            link: 0,
            way,
            run,
            figures,
            failed: None,
        }
    }

    #[test]
    fn the_table_has_medians_and_only_the_columns_that_were_measured() {
        let mut records = vec![
            record(Way::Tpo, 0, 90.0),
            record(Way::Tpo, 1, 10.0),
            record(Way::Tpo, 2, 91.0),
        ];
        records.push(Record {
            link: 1,
            way: Way::Bbr,
            run: 0,
            figures: Figures::new(),
            failed: Some("no such thing".into()),
        });
        let text = table(&plan::quick(), &records);
        assert_eq!(
            text,
            "**Bulk**\n\n| link | way | down, Mbit/s |\n|---|---|--:|\n| 100 Mbit/s, 100 ms, 1 % | tpo | 90.0 |\n\n\
             failed: plain veth, direct, BBR, run 1: no such thing\n"
        );
    }

    #[test]
    fn a_cell_without_a_figure_has_a_dash() {
        let mut other = record(Way::Cubic, 0, 2.0);
        other.figures.set("up_mbit", 3.0);
        let text = table(&plan::quick(), &[record(Way::Tpo, 0, 90.0), other]);
        assert!(text.contains("| direct, CUBIC | 2.0 | 3.0 |"), "{text}");
        assert!(text.contains("| tpo | 90.0 | - |"), "{text}");
    }

    #[test]
    fn a_record_is_a_line_of_json() {
        let line = record(Way::Tpo, 1, 90.5).line(&plan::quick());
        let value: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(value["figures"]["down_mbit"], 90.5);
        assert_eq!(value["run"], 2);
        assert_eq!(value["profile"], "rate=100mbit delay=50ms loss=1%");
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
    }

    #[test]
    fn every_figure_has_one_column() {
        let mut names: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COLUMNS.len());
    }
}
