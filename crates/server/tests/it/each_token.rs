//! `/embed_all`: a vector of each token.

use onelane::testing::within_a_minute;
use onelane_server::Model;
use serde_json::{Value, json};

use crate::fake::{Fake, LIMIT, Plain, vector};
use crate::running::{Running, config, device, queue};

fn vectors(value: &Value) -> Vec<Vec<Vec<f32>>> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn each_token_has_a_vector_and_each_text_its_own_request() {
    within_a_minute(|| {
        let fake = Fake { default_prompt: Some("text: ".to_owned()), ..Fake::default() };
        let server = Running::new(&fake);
        let asked = json!({"inputs": ["a b c", "d"], "truncation_direction": "right"});
        let answer = server.post("/embed_all", asked);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let of = |words: &[&str]| words.iter().map(|word| vector(word)).collect::<Vec<_>>();
        let expected = [of(&["text:", "a", "b", "c"]), of(&["text:", "d"])];
        assert_eq!(vectors(&answer.json()), expected);
        assert_eq!(answer.header("x-compute-tokens"), Some("6"));
        let mut ran = fake.texts();
        ran.sort_unstable();
        assert_eq!(ran, ["text: a b c", "text: d"]);
        // One text is answered as a list of one.
        let one = server.post("/embed_all", json!({"inputs": "e", "prompt_name": "query"}));
        assert_eq!(vectors(&one.json()), [of(&["ask:", "e"])]);
    });
}

#[test]
fn long_texts_are_cut_and_told_and_answers_have_a_bound() {
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        let long = "w ".repeat(LIMIT + 1);
        let told = server.post("/embed_all", json!({"inputs": [long]}));
        assert_eq!((told.status, told.header("x-truncated-inputs")), (200, Some("1")));
        assert_eq!(vectors(&told.json())[0].len(), LIMIT);
        let refused = server.post("/embed_all", json!({"inputs": [long], "truncate": false}));
        assert_eq!(refused.status, 413);
        let many = vec![long; (16 << 10) / LIMIT + 1];
        let refused = server.post("/embed_all", json!({"inputs": many}));
        assert_eq!(refused.status, 413);
        assert!(refused.message().contains("16448 tokens"), "{}", refused.message());
        let left =
            server.post("/embed_all", json!({"inputs": "a", "truncation_direction": "Left"}));
        assert_eq!(left.status, 422);
        assert!(left.message().starts_with("truncation_direction:"), "{}", left.message());
    });
}

#[test]
fn a_model_without_them_says_so() {
    within_a_minute(|| {
        let plain = Model::embedder("plain", Plain(Fake::default()), &device(), queue());
        let server = Running::of(vec![plain], config());
        server.wait_ready();
        assert_eq!(server.post("/embed", json!({"inputs": "a"})).status, 200);
        let refused = server.post("/embed_all", json!({"inputs": "a"}));
        assert_eq!(refused.status, 404);
        let said = "does not give a vector of each token";
        assert!(refused.message().contains(said), "{}", refused.message());
    });
}
