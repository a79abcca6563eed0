//! Tables over kv. So far the order-preserving encoding of keys.
