//! [`Report`]: the table, the directed counterexample and the other hazards, as they are printed, drawn
//! and written as JSON.

use onelane_sim::scenario::{
    Cell, Column, Counterexample, Expectation, Finding, Hazard, Job, Program, Row, Step, Trial,
    counterexample,
};
use onelane_sim::{Profile, Reuse, SimResult, StreamPolicy};
use serde::Serialize;

use super::timeline::Timeline;

/// Everything that the command found. All of it is simulated.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Always true: nothing here ran on hardware.
    pub simulated: bool,
    pub profile: String,
    pub threads: usize,
    pub iterations: usize,
    /// Seeds 0 to one less.
    pub seeds: usize,
    pub tolerance: f32,
    /// Row by row.
    pub table: Vec<CellReport>,
    pub counterexamples: Vec<Directed>,
    pub findings: Vec<Finding>,
    /// Whether all of the above is what the rules must give.
    pub as_expected: bool,
    /// The counterexample's steps.
    pub steps: Vec<Step>,
    #[serde(skip)]
    pub timeline: Option<Timeline>,
}

/// A cell of the table over all seeds.
#[derive(Debug, Serialize)]
pub struct CellReport {
    pub row: String,
    pub column: String,
    /// Right iterations, by seed.
    pub passed: Vec<usize>,
    pub lowest: usize,
    pub highest: usize,
    /// The greatest difference to the serial result; `null` when a number was not finite.
    pub max_diff: f32,
    /// Seeds with which the simulated process ended before its time.
    pub ended_early: usize,
    /// Why, the first time.
    pub ended_by: Option<String>,
    pub expected: Expectation,
    pub as_expected: bool,
}

/// The counterexample under one set of rules.
#[derive(Debug, Serialize)]
pub struct Directed {
    pub rules: String,
    /// The greatest difference of T1's result; `null` when the simulated process failed.
    pub max_diff: Option<f32>,
    pub corrupts: bool,
    pub error: Option<String>,
    pub as_expected: bool,
}

impl Report {
    /// How often [`Report::gather`] calls `done`.
    pub fn steps(seeds: usize) -> usize {
        Job::all(0..seeds as u64).len() + 1 + Hazard::ALL.len()
    }

    /// Runs everything; `done` hears of each part as it ends.
    pub fn gather(
        profile: &Profile,
        (seeds, iterations): (usize, usize),
        done: &(dyn Fn(&str) + Sync),
    ) -> Self {
        let trial = Trial::new(profile.clone()).iterations(iterations);
        let jobs = Job::all(0..seeds as u64);
        let cells = trial.cells(&jobs, |job, _| done(&format!("{}, {}", job.row, job.column)));
        let mut table = Vec::new();
        for row in Row::ALL {
            for column in Column::ALL {
                let of_cell = |(job, _): &(&Job, &Cell)| (job.row, job.column) == (row, column);
                let cells: Vec<&Cell> =
                    jobs.iter().zip(&cells).filter(of_cell).map(|(_, cell)| cell).collect();
                let expected = Expectation::under(profile, row, column);
                table.push(CellReport::of((row, column), expected, &cells));
            }
        }
        let counterexamples = Directed::all(profile);
        // What is drawn is the fork's, whose rules corrupt.
        let drawn = counterexample(Profile::fork_2_9_1(), Program::Race);
        done("two threads, one order of steps");
        let mut findings = Vec::new();
        for hazard in Hazard::ALL {
            findings.extend(hazard.findings(seeds as u64));
            done(&hazard.to_string());
        }
        let mut report = Self {
            simulated: true,
            profile: profile.name.to_string(),
            threads: trial.threads,
            iterations,
            seeds,
            tolerance: trial.tolerance,
            table,
            counterexamples,
            findings,
            as_expected: false,
            timeline: drawn.as_ref().ok().and_then(Timeline::of),
            steps: drawn.map(|found| found.steps).unwrap_or_default(),
        };
        report.as_expected = report.unexpected() == 0;
        report
    }

    /// How many things are not as the rules must give them.
    pub fn unexpected(&self) -> usize {
        let drawn = usize::from(self.timeline.is_none());
        drawn
            + self.table.iter().filter(|cell| !cell.as_expected).count()
            + self.counterexamples.iter().filter(|directed| !directed.as_expected).count()
            + self.findings.iter().filter(|finding| !finding.as_expected).count()
    }

    /// The table's rows, each with its cells.
    pub fn rows(&self) -> impl Iterator<Item = (Row, &[CellReport])> {
        Row::ALL.into_iter().zip(self.table.chunks(Column::ALL.len()))
    }
}

impl CellReport {
    fn of((row, column): (Row, Column), expected: Expectation, cells: &[&Cell]) -> Self {
        let passed: Vec<usize> = cells.iter().map(|cell| cell.passed()).collect();
        let ended = || cells.iter().filter_map(|cell| cell.ended_by.as_ref());
        Self {
            row: row.to_string(),
            column: column.to_string(),
            lowest: passed.iter().copied().min().unwrap_or(0),
            highest: passed.iter().copied().max().unwrap_or(0),
            passed,
            max_diff: cells.iter().map(|cell| cell.worst).fold(0.0, f32::max),
            ended_early: ended().count(),
            ended_by: ended().next().map(ToString::to_string),
            expected,
            as_expected: expected.is_met(cells.iter().copied()),
        }
    }

    /// Whether every iteration passed with every seed.
    pub fn passes(&self, iterations: usize) -> bool {
        self.lowest == iterations && self.ended_early == 0
    }

    /// The right iterations, as a number or a range.
    pub fn range(&self) -> String {
        match self.lowest == self.highest {
            true => self.lowest.to_string(),
            false => format!("{}..{}", self.lowest, self.highest),
        }
    }
}

impl Directed {
    /// The profile, and what cures it.
    fn all(profile: &Profile) -> Vec<Self> {
        let cured = |rules: &str, profile: Profile| {
            let found = counterexample(profile.clone(), Program::Race);
            Self::of(rules.to_owned(), profile.gives_pending_blocks_away(), found)
        };
        vec![
            cured(&profile.name, profile.clone()),
            cured("allocator per_stream", profile.clone().with_reuse(Reuse::PerStream)),
            cured("allocator retain", profile.clone().with_reuse(Reuse::Retain)),
            cured("one shared stream", profile.clone().with_streams(StreamPolicy::Shared)),
        ]
    }

    fn of(rules: String, must_corrupt: bool, found: SimResult<Counterexample>) -> Self {
        let corrupts = found.as_ref().is_ok_and(Counterexample::reproduced);
        Self {
            rules,
            max_diff: found.as_ref().ok().map(|found| found.worst),
            corrupts,
            error: found.err().map(|error| error.to_string()),
            as_expected: corrupts == must_corrupt,
        }
    }

    /// What came of it.
    pub fn outcome(&self) -> String {
        match (&self.error, self.max_diff) {
            (Some(error), _) => error.clone(),
            (None, Some(diff)) if self.corrupts => format!("wrong numbers, difference {diff:.1e}"),
            (None, _) => "right numbers".to_owned(),
        }
    }
}
