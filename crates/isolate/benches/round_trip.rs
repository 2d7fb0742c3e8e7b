//! What a child process costs a request: the same engine in process and isolated, in turns, one
//! caller. Medians, in microseconds. And what a second isolated worker brings to an engine that
//! computes on one thread. `cargo bench -p onelane-isolate`, or of it `-- ping`, `-- large`,
//! `-- throughput`, `-- two`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
};
use onelane_isolate::{
    Isolated, IsolationConfig, Reader, Supervisor, Wire, WireError, Writer, serve, this_program,
};

const DEVICE_MS: &str = "ONELANE_BENCH_DEVICE_MS";
/// How much a batch computes, in rounds of a random number generator.
const WORK: &str = "ONELANE_BENCH_WORK";

/// Some 2 ms of an idle core.
const ROUNDS: u64 = 2_000_000;

/// 1 MB of float32.
const LARGE: usize = 250_000;

struct Row(Vec<f32>);

impl BatchItem for Row {
    type Key = ();
    fn key(&self) {}
}

impl Wire for Row {
    fn write(&self, to: &mut Writer<'_>) {
        self.0.write(to);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Vec::read(from).map(Self)
    }
}

/// Answers with what it was asked.
struct Identity {
    /// How long a batch takes besides: a device that is waited for.
    device: Duration,
    /// How much it computes besides, on one thread.
    work: u64,
}

impl Identity {
    /// In a child a variable says what the device takes.
    fn new() -> Result<Self, EngineError> {
        let number =
            |name| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self { device: Duration::from_millis(number(DEVICE_MS)), work: number(WORK) })
    }
}

impl Engine for Identity {
    type Item = Row;
    type Output = Vec<f32>;
    fn infer(&mut self, batch: &[Row]) -> Result<Vec<Vec<f32>>, EngineError> {
        if !self.device.is_zero() {
            std::thread::sleep(self.device);
        }
        let mut state = 1_u64;
        for _ in 0..self.work {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        Ok(batch.iter().map(|row| row.0.clone()).collect())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    serve::<Identity>(Identity::new);
    // glibc keeps freed memory once it has seen a large block freed, as a server that has run for a
    // while has; before that, both sides of the comparison measure page faults.
    drop(black_box(vec![1_u8; 31 << 20]));
    let chosen: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_chosen = |part| chosen.is_empty() || chosen.iter().any(|name| name == part);
    if is_chosen("ping") || is_chosen("large") {
        one_caller(is_chosen("ping"), is_chosen("large"))?;
    }
    if is_chosen("throughput") {
        throughput()?;
    }
    if is_chosen("two") {
        two_workers()?;
    }
    Ok(())
}

fn one_caller(with_ping: bool, with_large: bool) -> Result<(), Box<dyn std::error::Error>> {
    let device = DeviceExecutor::shared("bench:0")?;
    let supervisor = Supervisor::new(this_program, IsolationConfig::default())?;
    let factory = Isolated::<Identity>::factory(&supervisor);
    let mut bare = factory()?;
    let isolated = BatchQueue::new(&device, BatchConfig::default(), factory)?;
    let direct = BatchQueue::new(&device, BatchConfig::default(), Identity::new)?;

    let mut ping = || {
        let in_process = median(300, || drop(ask(&direct, vec![1.0; 16])));
        let through_child = median(300, || drop(ask(&isolated, vec![1.0; 16])));
        let items = [Row(vec![1.0; 16])];
        let hop = median(300, || drop(black_box(bare.infer(&items))));
        [in_process, through_child, hop]
    };
    if with_ping {
        let [in_process, through_child, hop] = rounds(&mut ping);
        println!("64 bytes: in process {in_process:.1}, isolated {through_child:.1}, hop {hop:.1}");
        println!("64 bytes: added {:.1} (aim: 60 at most)", through_child - in_process);
    }
    if !with_large {
        return Ok(());
    }

    let (from, mut to) = (vec![1.0_f32; LARGE], vec![0.0_f32; LARGE]);
    let mut large = || {
        let copies = median(50, || {
            for _ in 0..2 {
                black_box(&mut to).copy_from_slice(black_box(&from));
            }
        });
        let in_process = median_of(50, || vec![1.0; LARGE], |row| drop(ask(&direct, row)));
        let through_child = median_of(50, || vec![1.0; LARGE], |row| drop(ask(&isolated, row)));
        let items = [Row(vec![1.0; LARGE])];
        let hop = median(50, || drop(black_box(bare.infer(&items))));
        [copies, in_process, through_child, hop]
    };
    let [copies, in_process, through_child, hop] = rounds(&mut large);
    println!(
        "1 MB: two memcpys {copies:.1}, in process {in_process:.1}, isolated {through_child:.1}, \
         hop {hop:.1}"
    );
    let aim = 2.0 * copies + 60.0;
    println!("1 MB: added {:.1} (aim: {aim:.1} at most)", through_child - in_process);
    let child = supervisor.stats().children[0].to_string();
    let count = || [page_faults("self"), page_faults(&child)];
    let before = count();
    for _ in 0..100 {
        drop(ask(&isolated, vec![1.0; LARGE]));
    }
    let [ours, its] = [0, 1].map(|side| (count()[side] - before[side]) as f64 / 100.0);
    println!("1 MB: page faults a request: {ours:.2} in the parent, {its:.2} in the child");
    Ok(())
}

/// Minor page faults of a process since its start; 0 where the system does not say.
fn page_faults(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().nth(7).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Requests a second of an engine that computes on one thread, by two isolated workers over one.
fn two_workers() -> Result<(), Box<dyn std::error::Error>> {
    let command = || {
        let mut command = this_program();
        command.env(WORK, ROUNDS.to_string());
        command
    };
    let queue = |name: &str, workers| -> Result<_, Box<dyn std::error::Error>> {
        let supervisor = Supervisor::new(command, IsolationConfig::default())?;
        let device = DeviceExecutor::new(ExecutorConfig::new(name).workers(workers))?;
        let config = BatchConfig::default().max_batch_size(1);
        let queue = BatchQueue::new(&device, config, Isolated::<Identity>::factory(&supervisor))?;
        assert_eq!(supervisor.stats().children.len(), workers, "a child for each worker");
        Ok((device, queue))
    };
    let ((_one, one), (_two, two)) = (queue("bench:3", 1)?, queue("bench:4", 2)?);
    let per_second = |queue: &BatchQueue<Isolated<Identity>>| {
        let since = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| drop(ask(queue, vec![1.0; 16]))));
            }
        });
        100.0 / since.elapsed().as_secs_f64()
    };
    let mut ratios = Vec::new();
    for _ in 0..15 {
        ratios.push(1.0 / (per_second(&one) / per_second(&two)));
    }
    let (least, most) = ratios
        .iter()
        .fold((f64::MAX, 0.0_f64), |(least, most), &ratio| (least.min(ratio), most.max(ratio)));
    println!(
        "two isolated workers over one: {:.2}, {least:.2} to {most:.2} in 15 pairs (aim: 1.8 at least)",
        middle(ratios)
    );
    Ok(())
}

/// Requests a second of 64 threads on a device that takes 1 ms a batch, isolated over in process.
fn throughput() -> Result<(), Box<dyn std::error::Error>> {
    let command = || {
        let mut command = this_program();
        command.env(DEVICE_MS, "1");
        command
    };
    let supervisor = Supervisor::new(command, IsolationConfig::default())?;
    let factory = Isolated::<Identity>::factory(&supervisor);
    let [first, second] = ["bench:1", "bench:2"].map(DeviceExecutor::shared);
    let isolated = BatchQueue::new(&first?, BatchConfig::default(), factory)?;
    let in_process =
        || Ok::<_, EngineError>(Identity { device: Duration::from_millis(1), work: 0 });
    let direct = BatchQueue::new(&second?, BatchConfig::default(), in_process)?;
    let [direct, isolated] = rounds(&mut || [per_second(&direct), per_second(&isolated)]);
    println!(
        "1 ms a batch, 64 threads: {direct:.0} a second in process, {isolated:.0} isolated: {:.3} \
         (aim: 0.95 at least)",
        isolated / direct
    );
    Ok(())
}

fn per_second<E>(queue: &BatchQueue<E>) -> f64
where
    E: Engine<Item = Row, Output = Vec<f32>>,
{
    let since = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| (0..100).for_each(|_| drop(ask(queue, vec![1.0; 16]))));
        }
    });
    6400.0 / since.elapsed().as_secs_f64()
}

fn ask(queue: &BatchQueue<impl Engine<Item = Row, Output = Vec<f32>>>, row: Vec<f32>) -> Vec<f32> {
    queue.submit(Row(row)).expect("open").wait().expect("an answer")
}

/// Medians over rounds in which everything is measured in turn.
fn rounds<const N: usize>(round: &mut dyn FnMut() -> [f64; N]) -> [f64; N] {
    round();
    let rounds: Vec<[f64; N]> = (0..15).map(|_| round()).collect();
    std::array::from_fn(|i| middle(rounds.iter().map(|round| round[i]).collect()))
}

fn median(count: usize, mut body: impl FnMut()) -> f64 {
    median_of(count, || (), |()| body())
}

fn median_of<T>(count: usize, prepare: impl Fn() -> T, mut body: impl FnMut(T)) -> f64 {
    let time = |_| {
        let input = prepare();
        let since = Instant::now();
        body(input);
        since.elapsed().as_secs_f64() * 1e6
    };
    middle((0..count).map(time).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
