//! Compiles the .proto files of the public API, and keeps their descriptors for gRPC reflection.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(out.join("flotilla_descriptor.bin"))
        .compile_protos(&["proto/flotilla/v1/kv.proto", "proto/flotilla/v1/admin.proto"], &["proto"])?;
    Ok(())
}
