//! What a benchmark of loads came to: figures of each cell, over all rounds.

use comfy_table::{CellAlignment, Table, presets};
use onelane_bench::generator::{Latencies, Sent};
use onelane_bench::median;
use serde::Serialize;

use super::observed::Counts;
use super::run::{Open, Run};

/// The figures of one strategy under one load, over all rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Median of the rounds.
    pub requests_per_second: f64,
    /// Requests whose latency was taken, in all rounds.
    pub requests: u64,
    /// Latencies of all rounds together, in microseconds. Offline they are those of batches.
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub batches: u64,
    /// Requests that the engines computed.
    pub computed: u64,
    pub mean_batch: f64,
    /// Part of the time that an engine was at work; more than 1 with more than one engine.
    pub engine_busy: f64,
    /// Answers that were not those of the request alone.
    pub wrong: u64,
    /// Requests answered with an error.
    pub failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
}

impl Figures {
    /// Those of several rounds.
    pub fn of<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Self {
        let mut latencies = Latencies::default();
        let (mut counts, mut rates, mut seconds) = (Counts::default(), Vec::new(), 0.0);
        let mut figures = Self::default();
        for run in runs {
            latencies.add(&run.seen.latencies);
            counts = counts.plus(run.counts);
            rates.push(run.rate());
            seconds += run.took.as_secs_f64();
            figures.wrong += run.seen.wrong;
            figures.failed += run.seen.failed;
            figures.first_error = figures.first_error.or_else(|| run.seen.error.clone());
        }
        Self {
            requests_per_second: median(rates).unwrap_or(0.0),
            requests: latencies.count(),
            mean_us: latencies.mean_us(),
            p50_us: latencies.quantile_us(0.5),
            p99_us: latencies.quantile_us(0.99),
            p999_us: latencies.quantile_us(0.999),
            max_us: latencies.quantile_us(1.0),
            batches: counts.batches,
            computed: counts.items,
            mean_batch: counts.mean_batch(),
            engine_busy: counts.busy.as_secs_f64() / seconds.max(1e-9),
            ..figures
        }
    }

    fn row(&self) -> [String; 5] {
        [
            rate(self.requests_per_second),
            duration(self.p50_us),
            duration(self.p99_us),
            duration(self.p999_us),
            format!("{:.1}", self.mean_batch),
        ]
    }
}

/// One strategy in a closed loop.
#[derive(Clone, Debug, Serialize)]
pub struct Closed {
    /// `threads` or `tasks`.
    pub clients_are: &'static str,
    pub clients: usize,
    pub strategy: &'static str,
    #[serde(flatten)]
    pub figures: Figures,
    /// Throughput in parts of offline's, whose batches are as large as the clients could fill: the
    /// median of the rounds' ratios.
    pub ratio_to_offline: Option<f64>,
    /// The same to offline batches of the size that the queue's had on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_offline_at_mean_batch: Option<f64>,
}

/// One strategy under open load.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// In parts of the capacity, if that is how it was given.
    pub load: Option<f64>,
    /// What was asked for; it came to `offered` in all rounds.
    pub rate: f64,
    pub strategy: &'static str,
    #[serde(flatten)]
    pub figures: Figures,
    pub offered: u64,
    /// By a full queue.
    pub refused: u64,
    /// Not begun when the time was over; their latency is their age then.
    pub not_begun: u64,
    /// How late the sender was; part of the latencies.
    pub sent_late_p99_us: f64,
}

impl Loaded {
    /// The figures of several rounds.
    pub fn of(load: Option<f64>, rate: f64, strategy: &'static str, rounds: &[Open]) -> Self {
        let mut sent = Sent::default();
        for open in rounds {
            sent.add(&open.sent);
        }
        Self {
            load,
            rate,
            strategy,
            figures: Figures::of(rounds.iter().map(|open| &open.run)),
            offered: sent.offered,
            refused: sent.refused,
            not_begun: sent.missed,
            sent_late_p99_us: sent.lateness.quantile_us(0.99),
        }
    }
}

/// A benchmark of loads.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub engine: String,
    pub device: String,
    /// Whether the device is a simulation: then no time says anything of the real one.
    pub simulated: bool,
    pub max_batch_size: usize,
    /// Threads that own the device, of each queue.
    pub workers: usize,
    /// Who hands answers over: auto, worker or thread.
    pub delivery: String,
    pub rounds: usize,
    /// Hardware threads of this machine.
    pub cores: usize,
    /// Threads that async tasks shared, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_threads: Option<usize>,
    /// What the batch queue did per second when it was never empty, if loads are parts of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_per_second: Option<f64>,
    pub closed: Vec<Closed>,
    pub open: Vec<Loaded>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// Whether every answer was right.
    pub ok: bool,
}

impl Report {
    /// What it was run on, in a line.
    pub fn headline(&self) -> String {
        let simulated =
            if self.simulated { " (SIMULATED: its times say nothing of a GPU)" } else { "" };
        let workers = match self.workers {
            1 => String::new(),
            more => format!("{more} workers, "),
        };
        let delivery = match self.delivery.as_str() {
            "auto" => String::new(),
            forced => format!("delivery by {forced}, "),
        };
        let tasks = match self.task_threads {
            Some(threads) if threads != self.cores => format!(", tasks on {threads} threads"),
            _ => String::new(),
        };
        format!(
            "engine {}, device {}{simulated}, {workers}{delivery}batches of at most {}, {} rounds, {} cores{tasks}",
            self.engine, self.device, self.max_batch_size, self.rounds, self.cores
        )
    }

    /// The closed-loop table; none without rows.
    pub fn closed_table(&self) -> Option<Table> {
        let head = [
            "clients",
            "strategy",
            "requests/s",
            "p50",
            "p99",
            "p99.9",
            "mean batch",
            "of offline",
            "at that batch",
        ];
        let rows = self.closed.iter().map(|cell| {
            let noun = cell.clients_are;
            let noun = if cell.clients == 1 { noun.trim_end_matches('s') } else { noun };
            let what = format!("{} {noun}", cell.clients);
            let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |r| format!("{r:.3}"));
            let mut row = vec![what, cell.strategy.to_owned()];
            row.extend(cell.figures.row());
            row.extend([ratio(cell.ratio_to_offline), ratio(cell.ratio_to_offline_at_mean_batch)]);
            row
        });
        table(&head, rows.collect())
    }

    /// The table of open load; none without rows.
    pub fn open_table(&self) -> Option<Table> {
        let head = [
            "load",
            "offered/s",
            "strategy",
            "requests/s",
            "p50",
            "p99",
            "p99.9",
            "mean batch",
            "refused",
            "not begun",
            "sent late, p99",
        ];
        let rows = self.open.iter().map(|cell| {
            let load = cell.load.map_or("-".to_owned(), |load| format!("{load}"));
            let mut row = vec![load, rate(cell.rate), cell.strategy.to_owned()];
            row.extend(cell.figures.row());
            let late = duration(cell.sent_late_p99_us);
            row.extend([cell.refused.to_string(), cell.not_begun.to_string(), late]);
            row
        });
        table(&head, rows.collect())
    }

    /// What went wrong, line by line.
    pub fn faults(&self) -> Vec<String> {
        let closed = self.closed.iter().map(|cell| {
            (format!("{}, {} {}", cell.strategy, cell.clients, cell.clients_are), &cell.figures)
        });
        let open = self.open.iter().map(|cell| {
            (format!("{}, {:.0} requests/s offered", cell.strategy, cell.rate), &cell.figures)
        });
        let mut faults = Vec::new();
        for (what, figures) in closed.chain(open) {
            if figures.wrong > 0 {
                let count = figures.wrong;
                faults.push(format!(
                    "{what}: {count} answers differ from those of the request alone"
                ));
            }
            if figures.failed > 0 {
                let error = figures.first_error.as_deref().unwrap_or("unknown");
                faults.push(format!(
                    "{what}: {} requests failed, the first with: {error}",
                    figures.failed
                ));
            }
        }
        faults
    }
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> Option<Table> {
    if rows.is_empty() {
        return None;
    }
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(head);
    for (column, name) in table.column_iter_mut().zip(head) {
        if *name != "strategy" {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    Some(table)
}

/// A rate, with digits for slow engines.
pub fn rate(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Microseconds as people read them.
pub fn duration(us: f64) -> String {
    match us {
        ..10.0 => format!("{us:.1} us"),
        ..1e3 => format!("{us:.0} us"),
        ..1e4 => format!("{:.2} ms", us / 1e3),
        ..1e6 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::judge::Seen;

    #[test]
    fn figures_are_of_all_rounds_and_the_rate_is_their_median() {
        let run = |answered: u64, batches: u64| {
            let mut latencies = Latencies::default();
            for _ in 0..answered {
                latencies.record_duration(Duration::from_millis(answered));
            }
            let busy = Duration::from_millis(500);
            let counts = Counts { batches, items: answered, busy };
            let seen = Seen { answered, latencies, ..Seen::default() };
            Run { seen, counts, took: Duration::from_secs(1) }
        };
        let figures = Figures::of(&[run(10, 5), run(90, 15), run(20, 10)]);
        assert_eq!(figures.requests_per_second, 20.0);
        assert_eq!((figures.requests, figures.computed, figures.batches), (120, 120, 30));
        assert_eq!((figures.mean_batch, figures.engine_busy), (4.0, 0.5));
        assert!((89_000.0..91_500.0).contains(&figures.p99_us), "{}", figures.p99_us);
    }

    #[test]
    fn durations_and_rates_are_read_by_people() {
        let texts = [1.25, 125.0, 1250.0, 12_500.0, 1_250_000.0].map(duration);
        assert_eq!(texts, ["1.2 us", "125 us", "1.25 ms", "12 ms", "1.25 s"]);
        assert_eq!([rate(9.87), rate(98_765.4)], ["9.9", "98765"]);
    }
}
