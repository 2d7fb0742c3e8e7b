//! x
use onelane_sim::scenario::*;
use onelane_sim::*;
fn main() {
    for n in [1, 2, 8] { println!("{n} {:?}", in_flight(Profile::candle_metal(), (n, false), 0)); println!("w {n} {:?}", in_flight(Profile::candle_metal(), (n, true), 0));}
}
