//! ModernBERT's settings: what cannot be computed is refused with a text that names it, and nothing
//! else is assumed in its place.

use crate::common::{HEADS, INNER, POSITIONS, TinyBert, WIDTH};
use crate::load::load;
use onelane_engines::LoadError;
use serde_json::{Value, json};

const LAYERS: usize = 3;

/// A ModernBERT with weights of ones, as transformers 4 would save it.
fn modern() -> TinyBert {
    let mut tiny = TinyBert::new();
    let vocabulary = tiny.config["vocab_size"].clone();
    tiny.config = json!({
        "model_type": "modernbert", "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "vocab_size": vocabulary,
        "max_position_embeddings": POSITIONS, "hidden_activation": "gelu", "norm_eps": 1e-5,
        "local_attention": 16, "global_attn_every_n_layers": 2, "pad_token_id": 0,
    });
    let vocabulary = vocabulary.as_u64().unwrap() as usize;
    tiny.tensors.clear();
    let mut add = |name: &str, shape: &[usize]| {
        let ones = vec![1.0; shape.iter().product()];
        tiny.tensors.insert(format!("{name}.weight"), (shape.to_vec(), ones));
    };
    add("embeddings.tok_embeddings", &[vocabulary, WIDTH]);
    for name in ["embeddings.norm", "final_norm"] {
        add(name, &[WIDTH]);
    }
    for layer in 0..LAYERS {
        if layer > 0 {
            add(&format!("layers.{layer}.attn_norm"), &[WIDTH]);
        }
        add(&format!("layers.{layer}.attn.Wqkv"), &[3 * WIDTH, WIDTH]);
        add(&format!("layers.{layer}.attn.Wo"), &[WIDTH, WIDTH]);
        add(&format!("layers.{layer}.mlp_norm"), &[WIDTH]);
        add(&format!("layers.{layer}.mlp.Wi"), &[2 * INNER, WIDTH]);
        add(&format!("layers.{layer}.mlp.Wo"), &[WIDTH, INNER]);
    }
    tiny
}

fn changed(settings: &[(&str, Value)]) -> TinyBert {
    let mut tiny = modern();
    for (name, value) in settings {
        tiny.config[*name] = value.clone();
    }
    tiny
}

#[test]
fn it_loads_also_with_a_prefix_and_by_the_names_of_transformers_5() {
    load(modern().write().path()).unwrap();
    let full = json!({"rope_type": "default", "rope_theta": 9e3});
    let kinds = ["sliding_attention", "full_attention", "full_attention"];
    let mut tiny = changed(&[
        ("layer_types", json!(kinds)),
        ("rope_parameters", json!({"full_attention": full, "sliding_attention": full})),
        ("rope_scaling", Value::Null),
    ]);
    let tensors = std::mem::take(&mut tiny.tensors);
    tiny.tensors = tensors.into_iter().map(|(name, t)| (format!("model.{name}"), t)).collect();
    load(tiny.write().path()).unwrap();
}

#[test]
fn what_it_does_not_compute_is_named() {
    let scaled = json!({"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}});
    for (setting, value, said) in [
        ("hidden_activation", json!("silu"), "silu is not supported"),
        ("classifier_activation", json!("tanh"), "classifier_activation = tanh"),
        ("classifier_pooling", json!("max"), "classifier_pooling = max"),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling = "),
        ("rope_parameters", scaled, "rope_type = yarn"),
    ] {
        let error = load(changed(&[(setting, value)]).write().path()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, LoadError::Unsupported { .. }), "{text}");
        assert!(text.contains("config.json") && text.contains(said), "{text}");
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let half = json!(["full_attention"]);
    let other = json!(["full_attention", "chunked_attention", "full_attention"]);
    for (settings, said) in [
        (vec![("global_attn_every_n_layers", json!(0))], "global_attn_every_n_layers is 0"),
        (vec![("layer_types", half)], "layer_types names 1 layers, and there are 3"),
        (vec![("layer_types", other)], "\"chunked_attention\""),
        (vec![("local_attention", json!(-1))], "local_attention"),
        (vec![("global_rope_theta", json!(0.0))], "a rope theta is 0"),
        (vec![("local_rope_theta", json!(1e300))], "a rope theta is"),
        (vec![("local_rope_theta", Value::Null)], "null"),
        (vec![("norm_eps", json!(-1.0))], "layer_norm_eps is -1"),
        (vec![("num_attention_heads", json!(WIDTH))], "a head's width, 1, is not a multiple of 2"),
        // Gigabytes of angles.
        (vec![("max_position_embeddings", json!(1 << 24))], "max_position_embeddings 16777216"),
        (vec![("num_hidden_layers", json!(2))], "num_hidden_layers is 2"),
    ] {
        let error = load(changed(&settings).write().path()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, LoadError::Damaged { .. }), "{text}");
        assert!(text.contains("config.json") && text.contains(said), "{text}");
    }
}

#[test]
fn a_bias_that_is_declared_must_be_there() {
    for (setting, tensor) in [
        ("attention_bias", "layers.0.attn.Wqkv.bias"),
        ("mlp_bias", "layers.0.mlp.Wi.bias"),
        ("norm_bias", "embeddings.norm.bias"),
    ] {
        let error = load(changed(&[(setting, json!(true))]).write().path()).unwrap_err();
        assert!(matches!(error, LoadError::Tensor { .. }), "{error}");
        assert!(error.to_string().contains(tensor), "{error}");
    }
}
