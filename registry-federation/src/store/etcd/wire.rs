//! etcd's messages and clients, generated from `proto/etcd.proto`.

/// Lints do not apply to code that a generator writes.
#[allow(missing_docs, unreachable_pub, unused_qualifications, dead_code, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("etcdserverpb");
}

pub(super) use generated::{
    Compare, DeleteRangeRequest, Event, KeyValue, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, ResponseHeader, ResponseOp, StatusRequest, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse, compare, event::EventType, kv_client::KvClient,
    lease_client::LeaseClient, maintenance_client::MaintenanceClient, request_op, response_op,
    watch_client::WatchClient, watch_request,
};

/// The revision of the store that an answer tells; 0 where it tells none, which etcd never does.
pub(super) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}
