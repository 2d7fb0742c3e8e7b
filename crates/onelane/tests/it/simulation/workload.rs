//! What a workload is made of: requests, steps, settings, and what the engine does with a request.

use proptest::prelude::*;

/// What the engine makes of a request; part of its value, so that the engine can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    Good,
    Poison,
    Bomb,
}

pub fn nature(value: u64) -> Nature {
    match value % 16 {
        14 => Nature::Poison,
        15 => Nature::Bomb,
        _ => Nature::Good,
    }
}

/// The answer that belongs to a request.
pub fn answer(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}

/// More requests of this key than this do not fit in the device's memory.
pub fn fits(key: u64) -> usize {
    if key == 2 { 2 } else { usize::MAX }
}

#[derive(Clone, Debug)]
pub struct New {
    pub key: u64,
    pub class: usize,
    pub cost: usize,
    pub nature: u64,
    pub deadline_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub enum Step {
    Submit(New),
    Group(Vec<New>),
    /// Submits for a task, which stands in line if there is no room.
    Infer(New),
    /// Submits requests one by one, advances, and lets the running batch end: the first who looks into
    /// the inbox is the worker.
    Burst(Vec<New>, u64),
    /// Drops the handle of one of those that are open.
    Cancel(prop::sample::Index),
    Advance(u64),
    /// Lets the running batch end.
    Run,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub max_batch_size: usize,
    pub max_batch_cost: usize,
    pub capacity: usize,
    pub capacity_cost: usize,
    pub ageing_ms: Option<u64>,
    pub abort: bool,
    /// A thread beside the worker hands answers over.
    pub beside: bool,
}

pub fn news() -> impl Strategy<Value = New> {
    let nature = prop_oneof![8 => 0..14_u64, 1 => Just(14), 1 => Just(15)];
    (0..3_u64, 0..3_usize, 1..4_usize, nature, prop::option::weighted(0.3, 0..40_u64)).prop_map(
        |(key, class, cost, nature, deadline_ms)| New { key, class, cost, nature, deadline_ms },
    )
}

/// What sets one of many requests that are alike apart.
#[derive(Clone, Debug)]
pub enum Odd {
    Nothing,
    Key(u64),
    Class(usize),
    Deadline(u64),
}

/// Requests of which most differ in their cost only. None expires before the clock is moved.
pub fn alike() -> impl Strategy<Value = Vec<New>> {
    let odd = prop_oneof![
        20 => Just(Odd::Nothing),
        1 => (0..3_u64).prop_map(Odd::Key),
        1 => (0..3_usize).prop_map(Odd::Class),
        1 => (1..40_u64).prop_map(Odd::Deadline),
    ];
    let many = prop::collection::vec((1..4_usize, odd), 2..8);
    (0..3_u64, 0..3_usize, many).prop_map(|(key, class, many)| {
        let new = |(cost, odd)| {
            let new = New { key, class, cost, nature: 0, deadline_ms: None };
            match odd {
                Odd::Nothing => new,
                Odd::Key(key) => New { key, ..new },
                Odd::Class(class) => New { class, ..new },
                Odd::Deadline(ms) => New { deadline_ms: Some(ms), ..new },
            }
        };
        many.into_iter().map(new).collect()
    })
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => news().prop_map(Step::Submit),
        2 => prop::collection::vec(news(), 0..6).prop_map(Step::Group),
        4 => news().prop_map(Step::Infer),
        2 => (alike(), 0..30_u64).prop_map(|(news, ms)| Step::Burst(news, ms)),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => (1..30_u64).prop_map(Step::Advance),
        4 => Just(Step::Run),
    ];
    prop::collection::vec(step, 1..60)
}

pub fn any_cost() -> impl Strategy<Value = usize> {
    prop_oneof![Just(usize::MAX), 3..9_usize]
}

prop_compose! {
    pub fn settings()(
        max_batch_size in 1..6_usize,
        max_batch_cost in any_cost(),
        capacity in 1..10_usize,
        capacity_cost in any_cost(),
        ageing_ms in prop::option::of(1..20_u64),
        abort in any::<bool>(),
        beside in any::<bool>(),
    ) -> Settings {
        Settings { max_batch_size, max_batch_cost, capacity, capacity_cost, ageing_ms, abort, beside }
    }
}
