//! Compiles the .proto files, and keeps the descriptors of the public API for gRPC reflection.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(out.join("flotilla_descriptor.bin"))
        .compile_protos(&["proto/flotilla/v1/kv.proto", "proto/flotilla/v1/admin.proto"], &["proto"])?;
    // A folder of its own: what is imported is generated again, and would take the place of the public API's code.
    let internal = out.join("internal");
    std::fs::create_dir_all(&internal)?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".flotilla.v1", "crate::v1")
        .out_dir(internal)
        .compile_protos(&["proto/flotilla/internal/v1/peer.proto"], &["proto"])?;
    Ok(())
}
