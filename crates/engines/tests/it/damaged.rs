//! Damaged, missing and foreign model files: a typed error that names the file, never a panic.

use std::path::Path;

use crate::common::{TinyBert, write_json};
use crate::load::load;
use onelane_engines::{
    BucketConfig, DeviceName, EmbeddingConfig, EmbeddingModel, LoadError, Padding,
};
use serde_json::json;

/// The error of a directory, and its text; the text must name `file`.
fn refused(path: &Path, file: &str) -> (LoadError, String) {
    let error = load(path).expect_err("a damaged model was loaded");
    let text = error.to_string();
    assert!(text.contains(file), "{text:?} does not name {file}");
    (error, text)
}

#[test]
fn the_undamaged_directory_loads() {
    load(TinyBert::new().write().path()).unwrap();
}

#[test]
fn a_path_that_is_no_directory() {
    let dir = TinyBert::new().write();
    let (error, _) = refused(&dir.path().join("absent"), "absent");
    assert!(matches!(error, LoadError::NotADirectory { .. }));
    let (error, _) = refused(&dir.path().join("config.json"), "config.json");
    assert!(matches!(error, LoadError::NotADirectory { .. }));
}

#[test]
fn a_missing_file() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = TinyBert::new().write();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let (error, text) = refused(dir.path(), file);
        assert!(matches!(error, LoadError::Missing { .. }), "{text}");
        assert!(text.contains("must hold"), "{text} does not say what to do");
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = TinyBert::new().write();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        std::fs::create_dir(dir.path().join(file)).unwrap();
        let (error, text) = refused(dir.path(), file);
        assert!(matches!(error, LoadError::Unreadable { .. }), "{text}");
    }
}

#[test]
fn a_file_cut_short_or_of_another_kind() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = TinyBert::new().write();
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for bytes in [
            &whole[..whole.len() - 1],
            &whole[..whole.len() / 2],
            &whole[..4],
            b"",
            b"\xff\xfe<html>",
        ] {
            std::fs::write(&path, bytes).unwrap();
            let (error, text) = refused(dir.path(), file);
            assert!(matches!(error, LoadError::Damaged { .. }), "{} bytes: {text}", bytes.len());
        }
    }
}

#[test]
fn a_tensor_that_is_absent_or_of_another_shape() {
    let mut tiny = TinyBert::new();
    let name = "encoder.layer.1.output.dense.weight";
    tiny.tensors.remove(name);
    let (error, text) = refused(tiny.write().path(), "model.safetensors");
    assert!(matches!(error, LoadError::Tensor { .. }), "{text}");
    assert!(text.contains(name) && text.contains("none"), "{text}");

    // config.json of another model, size by size.
    for (size, value) in [
        ("hidden_size", 64),
        ("num_hidden_layers", 3),
        ("intermediate_size", 32),
        ("vocab_size", 1000),
        ("max_position_embeddings", 512),
        ("type_vocab_size", 1),
    ] {
        let mut tiny = TinyBert::new();
        tiny.config[size] = value.into();
        let (error, text) = refused(tiny.write().path(), "model.safetensors");
        assert!(matches!(error, LoadError::Tensor { .. }), "{size}: {text}");
        assert!(text.contains("same model"), "{size}: {text} does not say what to do");
    }
}

#[test]
fn a_config_that_contradicts_itself() {
    for (size, value) in [
        ("num_attention_heads", json!(5)),
        ("num_attention_heads", json!(0)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1_u64 << 40)),
        ("hidden_size", json!(-32)),
        ("pad_token_id", json!(65)),
        ("layer_norm_eps", json!(-1.0)),
    ] {
        let mut tiny = TinyBert::new();
        tiny.config[size] = value;
        let (error, text) = refused(tiny.write().path(), "config.json");
        assert!(matches!(error, LoadError::Damaged { .. }), "{size}: {text}");
    }
    let mut tiny = TinyBert::new();
    tiny.config.as_object_mut().unwrap().remove("hidden_size");
    let (_, text) = refused(tiny.write().path(), "config.json");
    assert!(text.contains("hidden_size"), "{text}");
}

#[test]
fn a_config_that_asks_for_more_than_is_computed() {
    for (setting, value) in [
        ("model_type", json!("roberta")),
        ("hidden_act", json!("silu")),
        ("position_embedding_type", json!("relative_key")),
        ("is_decoder", json!(true)),
    ] {
        let mut tiny = TinyBert::new();
        tiny.config[setting] = value;
        let (error, text) = refused(tiny.write().path(), "config.json");
        assert!(matches!(error, LoadError::Unsupported { .. }), "{text}");
        assert!(text.contains(setting) && text.contains("supported: "), "{text}");
    }
}

#[test]
fn a_pooling_other_than_the_mean() {
    let flags = |on: &[&str]| {
        let names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"];
        let flags = names.map(|name| (format!("pooling_mode_{name}"), json!(on.contains(&name))));
        serde_json::Value::Object(flags.into_iter().collect())
    };
    let dir = TinyBert::new().write();
    for (pooling, found) in [
        (flags(&["cls_token"]), "cls"),
        (flags(&["max_tokens"]), "max"),
        (flags(&["mean_sqrt_len_tokens"]), "mean_sqrt_len"),
        (flags(&["cls_token", "mean_tokens"]), "cls+mean"),
        (flags(&[]), "none"),
        (json!({"pooling_mode": "lasttoken"}), "lasttoken"),
    ] {
        write_json(dir.path(), "1_Pooling/config.json", &pooling);
        let (error, text) = refused(dir.path(), "1_Pooling/config.json");
        assert!(matches!(error, LoadError::Unsupported { .. }), "{text}");
        assert!(
            text.contains(&format!("= {found} ")) && text.contains("supported: mean"),
            "{text}"
        );
    }
    for pooling in [flags(&["mean_tokens"]), json!({"pooling_mode": "mean"})] {
        write_json(dir.path(), "1_Pooling/config.json", &pooling);
        load(dir.path()).unwrap();
    }
    // The pooling is where modules.json says.
    let module = |kind: &str, path: &str| json!({"type": format!("a.b.{kind}"), "path": path});
    let modules = json!([module("Transformer", ""), module("Pooling", "elsewhere")]);
    write_json(dir.path(), "modules.json", &modules);
    write_json(dir.path(), "elsewhere/config.json", &flags(&["cls_token"]));
    refused(dir.path(), "elsewhere/config.json");
    write_json(dir.path(), "modules.json", &json!([module("Dense", "2_Dense")]));
    let (_, text) = refused(dir.path(), "modules.json");
    assert!(text.contains("Dense"), "{text}");
    std::fs::write(dir.path().join("modules.json"), "[{").unwrap();
    refused(dir.path(), "modules.json");
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model() {
    // One word more than the model has vectors for.
    let mut tiny = TinyBert::new();
    tiny.tokenizer["model"]["vocab"]["surplus"] = json!(65);
    let (_, text) = refused(tiny.write().path(), "tokenizer.json");
    assert!(text.contains("65"), "{text}");

    // A single text gets the second segment kind.
    let mut tiny = TinyBert::new();
    tiny.tokenizer["post_processor"]["single"][1]["Sequence"]["type_id"] = json!(1);
    let (_, text) = refused(tiny.write().path(), "tokenizer.json");
    assert!(text.contains("segment"), "{text}");

    // A limit that leaves no room for a word.
    let dir = TinyBert::new().write();
    write_json(dir.path(), "sentence_bert_config.json", &json!({"max_seq_length": 2}));
    let (_, text) = refused(dir.path(), "tokenizer.json");
    assert!(text.contains("no room"), "{text}");
}

#[test]
fn settings_that_cannot_be_used() {
    let dir = TinyBert::new().write();
    let open = |device, config| EmbeddingModel::open(dir.path(), device, config).err().unwrap();
    let zero = EmbeddingConfig::default().buckets(BucketConfig::fine().rows([0]));
    assert!(matches!(open(DeviceName::Cpu, zero), LoadError::Buckets(_)));
    let skip = EmbeddingConfig::default().padding(Padding::Skip);
    let error = open(DeviceName::Metal(0), skip);
    assert!(matches!(error, LoadError::Padding { .. }));
    assert!(error.to_string().contains("metal:0"));
}
