//! x
use onelane_sim::scenario::*;
use onelane_sim::*;
fn main() {
    let seeds: u64 = std::env::args().nth(1).map_or(2, |s| s.parse().unwrap());
    let profile: Profile = std::env::args().nth(2).map_or(Profile::fork_2_9_1(), |s| s.parse().unwrap());
    let trial = Trial::new(profile);
    for row in Row::ALL {
        for column in Column::ALL {
            let start = std::time::Instant::now();
            let cells: Vec<_> = (0..seeds).map(|s| trial.clone().seed(s).cell(row, column)).collect();
            let t = start.elapsed().as_secs_f64() / seeds as f64;
            println!("{:26} {:24} {:?} worst {:.2e} stale {} {:?} {:.2}s {:?}", row.to_string(), column.to_string(),
              cells.iter().map(|c| c.to_string()).collect::<Vec<_>>(), cells.iter().map(|c| c.worst).fold(0.0, f32::max),
              cells.iter().map(|c| c.stats.stale_reads + c.stats.stale_writes).sum::<u64>(), cells[0].ended_by.as_ref().map(|e| e.to_string()), t, (cells[0].stats.switches, cells[0].stats.steps));
        }
    }
}
