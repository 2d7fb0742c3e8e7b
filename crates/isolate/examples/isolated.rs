//! An engine that one request aborts, in a child process: the others are answered.
//!
//! `cargo run -p onelane-isolate --example isolated`

use std::time::Duration;

use onelane::{BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, Shutdown};
use onelane_isolate::{
    Isolated, IsolationConfig, Reader, Supervisor, Wire, WireError, Writer, serve, this_program,
};

/// A request: one row.
struct Row(Vec<f32>);

impl BatchItem for Row {
    type Key = usize;
    fn key(&self) -> usize {
        self.0.len()
    }
}

/// How a row crosses to the child.
impl Wire for Row {
    fn write(&self, to: &mut Writer<'_>) {
        self.0.write(to);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Vec::read(from).map(Self)
    }
}

/// Stands for a driver that aborts the process when it meets a number that is none.
struct Driver;

impl Engine for Driver {
    type Item = Row;
    type Output = f32;
    fn infer(&mut self, batch: &[Row]) -> Result<Vec<f32>, EngineError> {
        if batch.iter().any(|row| row.0.iter().any(|x| x.is_nan())) {
            eprintln!("failed assertion `isfinite(x)`");
            std::process::abort();
        }
        Ok(batch.iter().map(|row| row.0.iter().sum()).collect())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // In a child this runs the engine and never returns. It goes first.
    serve::<Driver>(|| Ok(Driver));

    let config = IsolationConfig::default().hang(Duration::from_secs(10)).spare(true);
    let supervisor = Supervisor::new(this_program, config)?;
    let device = DeviceExecutor::shared("driver:0")?;
    let factory = Isolated::<Driver>::factory(&supervisor);
    let queue = BatchQueue::new(&device, BatchConfig::default(), factory)?;

    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let queue = &queue;
            scope.spawn(move || {
                let x = if thread == 3 { f32::NAN } else { f32::from(thread) };
                match queue.submit(Row(vec![x; 4])).map(|handle| handle.wait()) {
                    Ok(Ok(sum)) => println!("{thread}: {sum}"),
                    Ok(Err(error)) => println!("{thread}: {error}"),
                    Err(refused) => println!("{thread}: {refused}"),
                }
            });
        }
    });

    let stats = supervisor.stats();
    println!("{} children started, {} crashed", stats.starts, stats.crashes);
    println!("the queue is {:?}", queue.health());
    queue.shutdown(Shutdown::Drain, Duration::from_secs(30))?;
    Ok(())
}
