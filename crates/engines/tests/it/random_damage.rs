//! Model directories and device names with random damage: they load, or an error says what is
//! wrong; nothing panics. `CASES=20000` looks longer, `SEED=1` elsewhere.

use crate::common::{TinyBert, in_time};
use crate::load::load;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use onelane_engines::DeviceName;

struct Random(ChaCha8Rng);

impl Random {
    fn seeded() -> Self {
        Self(ChaCha8Rng::seed_from_u64(setting("SEED", 0)))
    }

    fn byte(&mut self) -> u8 {
        self.0.next_u32() as u8
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % bound.max(1) as u64).expect("it was below a usize")
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// What parsers trip over.
const PIECES: [&str; 14] = [
    "0",
    "-1",
    "1e999",
    "18446744073709551615",
    "null",
    "[]",
    "{}",
    "\"\"",
    "true",
    "\\ud800",
    "\u{0}",
    "[[[[",
    "0.5",
    "9999999",
];

/// Changes, cuts, doubles or swaps something, one to three times.
fn damage(bytes: &mut Vec<u8>, end: usize, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let end = end.min(bytes.len());
        let at = random.below(end);
        match random.below(6) {
            0 if end > 0 => bytes[at] = random.byte(),
            1 if end > 0 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at, random.one(&PIECES).bytes())),
            4 => {
                // In place of a number or word.
                let stop = bytes[at..end].iter().position(|b| b",:]}".contains(b));
                let stop = at + stop.unwrap_or(0);
                drop(bytes.splice(at..stop, random.one(&PIECES).bytes()));
            }
            _ => {
                let stop = (at + random.below(40)).min(bytes.len());
                let part = bytes[at..stop].to_vec();
                drop(bytes.splice(at..at, part));
            }
        }
    }
}

#[test]
fn a_damaged_directory_loads_or_says_what_is_wrong() {
    let (mut loaded, mut refused) = (0_u64, 0_u64);
    let mut random = Random::seeded();
    let dir = TinyBert::new().write();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        // Numbers that are wrong are not found; the header of the tensors is what is parsed.
        let end = if file == "model.safetensors" {
            8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize
        } else {
            whole.len()
        };
        for case in 0..setting("CASES", 300) {
            let mut bytes = whole.clone();
            damage(&mut bytes, end, &mut random);
            std::fs::write(&path, &bytes).unwrap();
            let (at, head) = (dir.path().to_owned(), bytes[..end.min(bytes.len())].to_vec());
            let result = in_time(move || std::panic::catch_unwind(|| load(&at)));
            match result {
                Ok(Ok(())) => loaded += 1,
                Ok(Err(error)) => {
                    refused += 1;
                    assert!(error.to_string().len() > 10, "{error}");
                }
                Err(_) => panic!("case {case} of {file}: {}", String::from_utf8_lossy(&head)),
            }
        }
        std::fs::write(&path, &whole).unwrap();
    }
    // Both happen: the damage is neither always seen at once nor never.
    assert!(loaded > 0 && refused > loaded, "{loaded} loaded, {refused} refused");
}

#[test]
fn a_device_name_reads_what_it_writes_or_is_refused() {
    let mut random = Random::seeded();
    let words =
        ["cpu", "metal", "cuda", ":", "0", "7", "-", " ", "4294967296", "é", "CPU", "\u{0}"];
    let mut accepted = 0;
    for _ in 0..10 * setting("CASES", 300) {
        let text: String = (0..random.below(5)).map(|_| random.one(&words)).collect();
        if let Ok(device) = text.parse::<DeviceName>() {
            accepted += 1;
            assert_eq!(device.to_string().parse::<DeviceName>().ok(), Some(device), "{text:?}");
        }
    }
    assert!(accepted > 0);
}
