//! Compiles the .proto files. The gRPC services are left out without the feature `grpc`, so that `range` can name the
//! log format without the network.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    let mut files = vec!["proto/flotilla/log/v1/command.proto"];
    let mut builder = tonic_prost_build::configure().bytes(".").build_client(grpc).build_server(grpc);
    if grpc {
        files.extend(["proto/flotilla/v1/kv.proto", "proto/flotilla/v1/admin.proto", "proto/flotilla/internal/v1/peer.proto"]);
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
        builder = builder.file_descriptor_set_path(out.join("flotilla_descriptor.bin"));
    }
    builder.compile_protos(&files, &["proto"])?;
    Ok(())
}
