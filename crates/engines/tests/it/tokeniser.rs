//! The tokeniser: where its limit comes from, truncation, odd texts, many threads.

use crate::common::{POSITIONS, TinyBert, in_time, text, write_json};
use onelane_engines::{DeviceName, EmbeddingConfig, EmbeddingModel, MAX_TEXT_BYTES, TokenisedText};
use serde_json::json;

fn open(dir: &tempfile::TempDir) -> EmbeddingModel {
    EmbeddingModel::open(dir.path(), DeviceName::Cpu, EmbeddingConfig::default()).unwrap()
}

#[test]
fn the_limit_is_the_one_that_the_files_state() {
    let mut tiny = TinyBert::new();
    let dir = tiny.write();
    assert_eq!(open(&dir).tokeniser().max_length(), POSITIONS, "no file states a limit");

    tiny.tokenizer["truncation"] =
        json!({"max_length": 20, "strategy": "OnlyFirst", "stride": 3, "direction": "Right"});
    let dir = tiny.write();
    assert_eq!(open(&dir).tokeniser().max_length(), 20, "tokenizer.json");

    write_json(dir.path(), "tokenizer_config.json", &json!({"model_max_length": 40}));
    assert_eq!(open(&dir).tokeniser().max_length(), 40, "tokenizer_config.json");
    write_json(dir.path(), "tokenizer_config.json", &json!({"model_max_length": 1e30}));
    assert_eq!(open(&dir).tokeniser().max_length(), 20, "1e30 is no limit");

    write_json(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": 60}));
    assert_eq!(open(&dir).tokeniser().max_length(), 60, "sentence_bert_config.json");
    write_json(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": 9999}));
    assert_eq!(open(&dir).tokeniser().max_length(), POSITIONS, "never more than positions");
}

#[test]
fn a_long_text_is_truncated_and_says_so() {
    let dir = TinyBert::new().write();
    write_json(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": 20}));
    let model = open(&dir);
    let whole = model.tokeniser().encode(&text(18, 1)).unwrap();
    assert_eq!((whole.ids().len(), whole.truncated()), (20, false));
    for words in [19, 1000] {
        let cut = model.tokeniser().encode(&text(words, 1)).unwrap();
        assert_eq!((cut.ids().len(), cut.bucket(), cut.truncated()), (20, 20, true));
        // The end is cut, not the start; [CLS] and [SEP] stay.
        assert_eq!(cut.ids(), whole.ids());
        assert_eq!((cut.ids()[0], cut.ids()[19]), (2, 3));
    }
}

#[test]
fn the_tokeniser_never_pads() {
    // tokenizer.json asks for a fixed 128.
    let model = open(&TinyBert::new().write());
    assert_eq!(model.tokeniser().encode("w1 w2 w3").unwrap().ids(), [2, 6, 7, 8, 3]);
}

#[test]
fn odd_texts_become_tokens() {
    let model = open(&TinyBert::new().write());
    let ids = |text: &str| model.tokeniser().encode(text).unwrap().ids().to_vec();
    assert_eq!(ids(""), [2, 3], "an empty text is its special tokens");
    assert_eq!(ids(" \t\r\u{0} "), [2, 3]);
    assert_eq!(ids("unknown"), [2, 1, 3]);
    assert_eq!(ids(&"x".repeat(100_000)), [2, 1, 3]);
    assert_eq!(ids("w1 \u{1F600} \u{200D}")[..2], [2, 6]);
}

#[test]
fn of_a_text_that_is_far_too_long_its_start_counts() {
    let dir = TinyBert::new().write();
    let settings = json!({"max_seq_length": 20, "do_lower_case": true});
    write_json(dir.path(), "sentence_bert_config.json", &settings);
    let model = open(&dir);
    let encode = |text: &str| model.tokeniser().encode(text).unwrap();
    let few = text(1000, 1);
    let expected = encode(&few);
    assert!(expected.truncated());
    // Longer than would fit into memory as tokens, were it all looked at.
    let long = format!("{few} {}", "w1 ".repeat(100_000_000 / 3));
    in_time_with(&model, long, expected);
    // Nothing but space for a while, and one word without an end.
    assert_eq!(encode(&format!("{}{few}", " ".repeat(100_000))).ids(), encode(&few).ids());
    let word = encode(&"x".repeat(50_000_000));
    assert_eq!((word.ids(), word.truncated()), (&[2, 1, 3][..], true));
    let letters = encode(&"\u{e9}".repeat(MAX_TEXT_BYTES));
    assert_eq!((letters.ids(), letters.truncated()), (&[2, 1, 3][..], true));
    // Every length about the one that is looked at first.
    for words in 1..300 {
        let long = text(words, words);
        let whole: Vec<&str> = long.split(' ').take(18).collect();
        assert_eq!(encode(&long).ids(), encode(&whole.join(" ")).ids(), "{words} words");
        assert_eq!(encode(&long).truncated(), words > 18);
    }
}

/// Encodes a text in a thread of its own, which must end in time.
fn in_time_with(model: &EmbeddingModel, text: String, expected: TokenisedText) {
    let model = model.clone();
    in_time(move || assert_eq!(model.tokeniser().encode(&text).unwrap(), expected));
}

#[test]
fn a_model_that_keeps_the_end_of_a_text() {
    let mut tiny = TinyBert::new();
    tiny.tokenizer["truncation"] =
        json!({"max_length": 20, "strategy": "LongestFirst", "stride": 0, "direction": "Left"});
    let model = open(&tiny.write());
    let long = format!("{} {}", "w1 ".repeat(MAX_TEXT_BYTES), text(18, 7));
    let (cut, end) = (model.tokeniser().encode(&long), model.tokeniser().encode(&text(18, 7)));
    let (cut, end) = (cut.unwrap(), end.unwrap());
    assert_eq!((cut.ids(), cut.truncated(), end.truncated()), (end.ids(), true, false));
}

#[test]
fn text_is_lower_cased_when_the_settings_say_so() {
    let dir = TinyBert::new().write();
    assert_eq!(open(&dir).tokeniser().encode("W1").unwrap().ids(), [2, 1, 3]);
    let settings = json!({"max_seq_length": 20, "do_lower_case": true});
    write_json(dir.path(), "sentence_bert_config.json", &settings);
    assert_eq!(open(&dir).tokeniser().encode("W1").unwrap().ids(), [2, 6, 3]);
}

#[test]
fn eight_threads_share_one_tokeniser() {
    let dir = TinyBert::new().write();
    in_time(move || {
        let model = open(&dir);
        let expected: Vec<_> =
            (0..200).map(|i| model.tokeniser().encode(&text(i, i)).unwrap()).collect();
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    for (i, expected) in expected.iter().enumerate() {
                        assert_eq!(&model.tokeniser().encode(&text(i, i)).unwrap(), expected);
                    }
                });
            }
        });
    });
}
