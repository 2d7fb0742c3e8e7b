//! Damaged, missing and foreign model files: a typed error that names the file, never a panic.

use std::path::{Path, PathBuf};

use crate::common::{INNER, TinyBert, WIDTH, in_time, write_json};
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

/// Every file of a model directory that is read.
const FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
];

/// A tiny model, and the path of one of its files, which is not there.
fn without(file: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = TinyBert::new().write();
    let path = dir.path().join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(&path);
    (dir, path)
}

#[test]
fn a_directory_in_place_of_a_file() {
    for file in FILES {
        let (dir, path) = without(file);
        std::fs::create_dir(path).unwrap();
        let (error, text) = refused(dir.path(), file);
        assert!(matches!(error, LoadError::NotAFile { .. }), "{text}");
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_a_device_or_a_socket_in_place_of_a_file() {
    in_time(|| {
        for file in FILES {
            let (dir, path) = without(file);
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            assert!(refused(dir.path(), file).1.contains("is a pipe, not a regular file"));
            let (dir, path) = without(file);
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
            assert!(refused(dir.path(), file).1.contains("is a device"));
            let (dir, path) = without(file);
            let _socket = std::os::unix::net::UnixListener::bind(path).unwrap();
            assert!(refused(dir.path(), file).1.contains("is a socket"));
        }
    });
}

#[test]
fn a_file_far_larger_than_its_kind() {
    in_time(|| {
        for file in FILES {
            let (dir, path) = without(file);
            // No disk and no memory is large enough; the file has holes.
            std::fs::File::create(path).unwrap().set_len(1 << 42).unwrap();
            let (error, text) = refused(dir.path(), file);
            assert!(
                matches!(error, LoadError::TooLarge { .. } | LoadError::Damaged { .. }),
                "{text}"
            );
        }
        // The header alone would not fit.
        let (dir, path) = without("model.safetensors");
        std::fs::write(&path, (1_u64 << 40).to_le_bytes()).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 42).unwrap();
        assert!(refused(dir.path(), "model.safetensors").1.contains("1099511627776 bytes"));
    });
}

#[test]
fn an_error_repeats_little_of_a_file() {
    let long = "x".repeat(4 << 20);
    let short = |dir: &Path, file: &str| {
        let (_, text) = refused(dir, file);
        assert!(text.len() < 1000, "{file}: {} bytes", text.len());
    };
    for setting in ["model_type", "hidden_act", "hidden_size"] {
        let mut tiny = TinyBert::new();
        tiny.config[setting] = json!(long);
        short(tiny.write().path(), "config.json");
    }
    for kind in ["model", "normalizer", "pre_tokenizer", "post_processor"] {
        let mut tiny = TinyBert::new();
        tiny.tokenizer[kind] = json!({"type": long});
        short(tiny.write().path(), "tokenizer.json");
        tiny.tokenizer[kind] = json!({"type": "x".repeat(1000)});
        short(tiny.write().path(), "tokenizer.json");
    }
    let dir = TinyBert::new().write();
    write_json(dir.path(), "1_Pooling/config.json", &json!({"pooling_mode": long}));
    short(dir.path(), "1_Pooling/config.json");
    for modules in [
        json!([{"type": long, "path": ""}]),
        json!([{"type": "a.Pooling", "path": long}]),
        json!({"a": long}),
    ] {
        write_json(dir.path(), "modules.json", &modules);
        short(dir.path(), "modules.json");
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

    // A tensor of a thousand dimensions is not told in full.
    let mut tiny = TinyBert::new();
    tiny.tensors.get_mut(name).unwrap().0 = [vec![1; 1000], vec![WIDTH, INNER]].concat();
    let (_, text) = refused(tiny.write().path(), "model.safetensors");
    assert!(text.contains("and more") && text.len() < 1000, "{text}");

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
        ("model_type", json!("gpt2")),
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
fn a_model_with_more_layers_than_its_config() {
    let mut tiny = TinyBert::new();
    tiny.config["num_hidden_layers"] = json!(1);
    let (error, text) = refused(tiny.write().path(), "config.json");
    assert!(matches!(error, LoadError::Damaged { .. }), "{text}");
    assert!(text.contains("num_hidden_layers is 1") && text.contains("2 layers"), "{text}");
}

#[test]
fn a_pooling_that_is_not_computed() {
    let flags = |on: &[&str]| {
        let names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"];
        let flags = names.map(|name| (format!("pooling_mode_{name}"), json!(on.contains(&name))));
        serde_json::Value::Object(flags.into_iter().collect())
    };
    let dir = TinyBert::new().write();
    for (pooling, found) in [
        (flags(&["max_tokens"]), "max"),
        (flags(&["mean_sqrt_len_tokens"]), "mean_sqrt_len"),
        (flags(&["cls_token", "mean_tokens"]), "cls+mean"),
        (flags(&[]), "none"),
        (json!({"pooling_mode": "weightedmean"}), "weightedmean"),
    ] {
        write_json(dir.path(), "1_Pooling/config.json", &pooling);
        let (error, text) = refused(dir.path(), "1_Pooling/config.json");
        assert!(matches!(error, LoadError::Unsupported { .. }), "{text}");
        assert!(
            text.contains(&format!("= {found} ")) && text.contains("supported: mean"),
            "{text}"
        );
    }
    // The pooling is where modules.json says.
    let module = |kind: &str, path: &str| json!({"type": format!("a.b.{kind}"), "path": path});
    let modules = json!([module("Transformer", ""), module("Pooling", "elsewhere")]);
    write_json(dir.path(), "modules.json", &modules);
    write_json(dir.path(), "elsewhere/config.json", &flags(&["max_tokens"]));
    refused(dir.path(), "elsewhere/config.json");
    // One that is listed and not there is not taken for the mean.
    std::fs::remove_file(dir.path().join("elsewhere/config.json")).unwrap();
    let (error, text) = refused(dir.path(), "elsewhere/config.json");
    assert!(matches!(error, LoadError::Missing { .. }), "{text}");
    for path in ["..", "../other", "a/../../other", "/etc", ""] {
        write_json(dir.path(), "modules.json", &json!([module("Pooling", path)]));
        let (_, text) = refused(dir.path(), "modules.json");
        assert!(text.contains("a folder inside the model directory"), "{path:?}: {text}");
    }
    write_json(dir.path(), "modules.json", &json!([module("Transformer", "")]));
    assert!(refused(dir.path(), "modules.json").1.contains("no Pooling"));
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

    // A special token that the model has no vector for.
    let mut tiny = TinyBert::new();
    tiny.tokenizer["post_processor"]["special_tokens"]["[CLS]"]["ids"] = json!([4_000_000]);
    let (_, text) = refused(tiny.write().path(), "tokenizer.json");
    assert!(text.contains("4000000"), "{text}");

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
fn a_tokenizer_that_would_take_all_memory_or_time() {
    in_time(|| {
        let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let mut tiny = TinyBert::new();
        tiny.tokenizer["normalizer"] =
            json!({"type": "Sequence", "normalizers": vec![replace; 40]});
        assert!(refused(tiny.write().path(), "tokenizer.json").1.contains("times longer"));
        let mut tiny = TinyBert::new();
        tiny.tokenizer["added_tokens"][0]["content"] = json!("x".repeat(20 << 20));
        assert!(refused(tiny.write().path(), "tokenizer.json").1.contains("20971520 bytes"));
        let mut tiny = TinyBert::new();
        tiny.tokenizer["model"]["max_input_chars_per_word"] = json!(1_000_000_000);
        assert!(refused(tiny.write().path(), "tokenizer.json").1.contains("quadratic"));
    });
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
