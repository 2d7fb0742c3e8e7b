//! Generates the gRPC service from its description, without protoc.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/grpc_service.proto";
    println!("cargo::rerun-if-changed={PROTO}");
    let mut compiler = protox::Compiler::new(["proto"])?;
    let descriptors = compiler.include_source_info(true).open_file("grpc_service.proto")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("grpc_service.bin"), descriptors.encode_file_descriptor_set())?;
    let set = descriptors.file_descriptor_set();
    tonic_prost_build::configure().build_client(true).compile_fds(set)?;
    Ok(())
}
