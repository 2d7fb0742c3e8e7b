//! `model.safetensors`: named tensors, checked against the shapes that `config.json` promises.
//!
//! The header is read first. Each tensor is then read by itself, so that a file that does not fit
//! costs no memory, and one that does is held once.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use crate::error::LoadError;
use crate::family::{Family, Names};
use crate::model_dir::ModelDir;

/// Name of the file in a model directory.
const FILE: &str = "model.safetensors";

/// The most bytes of a header; a model of thousands of tensors has a few hundred thousand.
const HEADER_BYTES: u64 = 16 << 20;

/// The tensors of a file.
pub(crate) struct Weights<'a> {
    dir: &'a ModelDir,
    /// Its name in the directory.
    name: String,
    file: File,
    tensors: Metadata,
    /// Where the data begins.
    data: u64,
    names: Names,
    /// The family's, when the file was saved from a model with a head on top.
    prefix: &'static str,
}

impl<'a> Weights<'a> {
    /// Opens the model's file: reads its header, and checks that the data is complete.
    pub fn open(dir: &'a ModelDir, names: Names) -> Result<Self, LoadError> {
        Self::open_file(dir, FILE.to_owned(), names)
    }

    /// The same of the file in a folder of the directory, which has no encoder.
    pub fn open_in(dir: &'a ModelDir, folder: &str) -> Result<Self, LoadError> {
        Self::open_file(dir, format!("{folder}/{FILE}"), Family::Bert.names())
    }

    fn open_file(dir: &'a ModelDir, name: String, names: Names) -> Result<Self, LoadError> {
        let damaged = |reason: &dyn std::fmt::Display| LoadError::damaged(dir.file(&name), reason);
        let unreadable = |source| LoadError::Unreadable { path: dir.file(&name), source };
        let (mut file, bytes) = dir.open_file(&name)?;
        if bytes < 8 {
            return Err(damaged(&format_args!("it has {bytes} bytes and not even a header")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(unreadable)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES.min(bytes - 8) {
            return Err(damaged(&format_args!("its header would have {header_bytes} bytes")));
        }
        let mut header = Vec::new();
        (&mut file).take(header_bytes).read_to_end(&mut header).map_err(unreadable)?;
        let tensors: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&error))?;
        let data = 8 + header_bytes;
        if (tensors.data_len() as u64).checked_add(data) != Some(bytes) {
            return Err(damaged(&format_args!(
                "it has {bytes} bytes, and by its header should have {data} and {} of tensors",
                tensors.data_len()
            )));
        }
        let first = format!("{}{}", names.prefix, names.words);
        let prefix = if tensors.info(&first).is_some() { names.prefix } else { "" };
        Ok(Self { dir, name, file, tensors, data, names, prefix })
    }

    /// What the tensors are called.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// How many rows a tensor has, if it is there: one of a head, which has no prefix.
    pub fn rows(&self, name: &str) -> Option<usize> {
        self.tensors.info(name)?.shape.first().copied()
    }

    /// One more than the highest number of a layer, by names such as `encoder.layer.5.`.
    pub fn layers(&self) -> usize {
        let of = |name: &String| -> Option<usize> {
            let rest = name.strip_prefix(self.prefix)?.strip_prefix(self.names.layers)?;
            rest.split_once('.')?.0.parse().ok()
        };
        self.tensors.offset_keys().iter().filter_map(of).max().map_or(0, |last| last + 1)
    }

    /// A tensor of the encoder, on the host in f32, whatever float type it was saved in.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.get_full(&format!("{}{name}", self.prefix), shape)
    }

    /// The same by its whole name: a tensor of a head.
    pub fn get_full(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let wrong = |found: String| LoadError::Tensor {
            path: self.dir.file(&self.name),
            name: name.to_owned(),
            expected: shape.to_vec(),
            found,
        };
        // Conversions from TensorFlow call the parameters of a normalisation gamma and beta.
        let old = name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        let info = self.tensors.info(name).or_else(|| self.tensors.info(&old));
        let info = info.ok_or_else(|| wrong("none".to_owned()))?;
        let found = || {
            // A stranger's shape may have any number of dimensions.
            let some = info.shape.get(..8).unwrap_or(&info.shape);
            let more = if info.shape.len() > 8 { " and more" } else { "" };
            format!("{:?} of {some:?}{more}", info.dtype)
        };
        if info.shape != shape {
            return Err(wrong(found()));
        }
        let data = self.read(info)?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &data);
        let tensor = view.ok().and_then(|view| view.load(&Device::Cpu).ok());
        let tensor = tensor.ok_or_else(|| wrong(found()))?;
        match tensor.dtype() {
            DType::F32 => Ok(tensor),
            DType::F16 | DType::BF16 | DType::F64 => Ok(tensor.to_dtype(DType::F32)?),
            _ => Err(wrong(found())),
        }
    }

    /// The bytes of a tensor.
    fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, LoadError> {
        let (start, end) = info.data_offsets;
        let mut data = Vec::new();
        let mut read = || {
            data.try_reserve_exact(end - start)?;
            let mut file = &self.file;
            file.seek(SeekFrom::Start(self.data + start as u64))?;
            file.take((end - start) as u64).read_to_end(&mut data)
        };
        match read() {
            Ok(_) => Ok(data),
            Err(source) => Err(LoadError::Unreadable { path: self.dir.file(&self.name), source }),
        }
    }
}
