//! Compares the compiled contracts with a table of facts about Network Service Mesh's wire, taken from its own
//! descriptors, so that a slip in a `.proto` file shows here and not at a peer.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};

use carrick_proto::{
    FILE_DESCRIPTOR_SET, connection, connectioncontext, networkservice,
    registry::{self, network_service_endpoint_registry_server, network_service_registry_server},
};
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MessageOptions,
    field_descriptor_proto::{Label, Type},
};

/// Full method path, input and output type; `stream` where the answer is one.
const METHODS: &str = "
/networkservice.NetworkService/Request networkservice.NetworkServiceRequest -> connection.Connection
/networkservice.NetworkService/Close connection.Connection -> google.protobuf.Empty
/connection.MonitorConnection/MonitorConnections connection.MonitorScopeSelector -> stream connection.ConnectionEvent
/registry.NetworkServiceRegistry/Register registry.NetworkService -> registry.NetworkService
/registry.NetworkServiceRegistry/Find registry.NetworkServiceQuery -> stream registry.NetworkServiceResponse
/registry.NetworkServiceRegistry/Unregister registry.NetworkService -> google.protobuf.Empty
/registry.NetworkServiceEndpointRegistry/Register registry.NetworkServiceEndpoint -> registry.NetworkServiceEndpoint
/registry.NetworkServiceEndpointRegistry/Find registry.NetworkServiceEndpointQuery -> stream registry.NetworkServiceEndpointResponse
/registry.NetworkServiceEndpointRegistry/Unregister registry.NetworkServiceEndpoint -> google.protobuf.Empty
";

/// A line per message: its fields as `name=number:type`, `*` for repeated; an enum's values as `name=number`.
const MESSAGES: &str = "
networkservice.NetworkServiceRequest connection=1:connection.Connection mechanism_preferences=2:*connection.Mechanism
connection.Mechanism cls=1:string type=2:string parameters=3:map<string,string>
connection.PathSegment name=1:string id=2:string token=3:string expires=4:google.protobuf.Timestamp metrics=5:map<string,string>
connection.Path index=1:uint32 path_segments=2:*connection.PathSegment
connection.Connection id=1:string network_service=2:string mechanism=3:connection.Mechanism context=4:connectioncontext.ConnectionContext labels=5:map<string,string> path=6:connection.Path network_service_endpoint_name=7:string payload=8:string state=9:connection.State
connection.State UP=0 DOWN=1 REFRESH_REQUESTED=2 RESELECT_REQUESTED=3
connection.ConnectionEventType INITIAL_STATE_TRANSFER=0 UPDATE=1 DELETE=2
connection.ConnectionEvent type=1:connection.ConnectionEventType connections=2:map<string,connection.Connection>
connection.MonitorScopeSelector path_segments=1:*connection.PathSegment network_services=2:*string
connectioncontext.IpNeighbor ip=1:string hardware_address=2:string
connectioncontext.Route prefix=1:string nextHop=2:string
connectioncontext.IpFamily family=1:connectioncontext.IpFamily.Family
connectioncontext.IpFamily.Family IPV4=0 IPV6=1
connectioncontext.ExtraPrefixRequest addr_family=1:connectioncontext.IpFamily prefix_len=2:uint32 required_number=3:uint32 requested_number=4:uint32
connectioncontext.PolicyRoute from=1:string proto=2:string dst_port=3:string src_port=4:string routes=5:*connectioncontext.Route
connectioncontext.IPContext src_ip_addrs=1:*string dst_ip_addrs=2:*string src_ip_required=3:bool dst_ip_required=4:bool src_routes=5:*connectioncontext.Route dst_routes=6:*connectioncontext.Route excluded_prefixes=7:*string ip_neighbors=8:*connectioncontext.IpNeighbor extra_prefix_request=9:*connectioncontext.ExtraPrefixRequest extra_prefixes=10:*string policies=11:*connectioncontext.PolicyRoute
connectioncontext.DNSConfig dns_server_ips=1:*string search_domains=2:*string
connectioncontext.DNSContext configs=1:*connectioncontext.DNSConfig
connectioncontext.EthernetContext src_mac=1:string dst_mac=2:string vlan_tag=3:int32
connectioncontext.ConnectionContext ip_context=1:connectioncontext.IPContext dns_context=2:connectioncontext.DNSContext ethernet_context=3:connectioncontext.EthernetContext extra_context=4:map<string,string> MTU=5:uint32
registry.NetworkService name=1:string payload=2:string matches=3:*registry.Match path_ids=4:*string
registry.Match source_selector=1:map<string,string> routes=2:*registry.Destination fallthrough=3:bool metadata=4:registry.Metadata
registry.Metadata labels=1:map<string,string>
registry.Destination destination_selector=1:map<string,string> weight=2:uint32
registry.NetworkServiceLabels labels=1:map<string,string>
registry.NetworkServiceEndpoint name=1:string network_service_names=2:*string network_service_labels=3:map<string,registry.NetworkServiceLabels> url=4:string expiration_time=5:google.protobuf.Timestamp initial_registration_time=6:google.protobuf.Timestamp path_ids=7:*string
registry.NetworkServiceQuery network_service=1:registry.NetworkService watch=2:bool
registry.NetworkServiceEndpointQuery network_service_endpoint=1:registry.NetworkServiceEndpoint watch=2:bool
registry.NetworkServiceResponse network_service=1:registry.NetworkService deleted=2:bool
registry.NetworkServiceEndpointResponse network_service_endpoint=1:registry.NetworkServiceEndpoint deleted=2:bool
";

fn ours() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file.retain(|f| !f.package().starts_with("google."));
    assert!(set.file.iter().all(|f| f.syntax() == "proto3"));
    set
}

fn lines(table: &str) -> BTreeSet<String> {
    let lines: Vec<_> = table.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
    let set: BTreeSet<_> = lines.iter().cloned().collect();
    assert_eq!(lines.len(), set.len(), "a line stands twice");
    set
}

#[test]
fn methods_have_nsms_paths_and_shapes() {
    let mut found = BTreeSet::new();
    for file in ours().file {
        for service in &file.service {
            for method in &service.method {
                assert!(!method.client_streaming(), "{}", method.name());
                found.insert(format!(
                    "/{}.{}/{} {} -> {}{}",
                    file.package(),
                    service.name(),
                    method.name(),
                    bare(method.input_type()),
                    if method.server_streaming() { "stream " } else { "" },
                    bare(method.output_type()),
                ));
            }
        }
    }
    assert_eq!(found, lines(METHODS));
}

#[test]
fn messages_have_nsms_fields_and_numbers() {
    let mut found = BTreeSet::new();
    for file in ours().file {
        for message in &file.message_type {
            describe(file.package(), message, &mut found);
        }
        for values in &file.enum_type {
            found.insert(describe_enum(file.package(), values));
        }
    }
    assert_eq!(found, lines(MESSAGES));
}

fn describe(scope: &str, message: &DescriptorProto, into: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    let mut maps = BTreeMap::new();
    for nested in &message.nested_type {
        if nested.options.as_ref().is_some_and(MessageOptions::map_entry) {
            let types: Vec<_> = nested.field.iter().map(type_of).collect();
            maps.insert(format!("{name}.{}", nested.name()), format!("map<{}>", types.join(",")));
        } else {
            describe(&name, nested, into);
        }
    }
    for values in &message.enum_type {
        into.insert(describe_enum(&name, values));
    }
    let mut line = name;
    for field in &message.field {
        let repeated = field.label() == Label::Repeated;
        let ty = type_of(field);
        let shown = match maps.get(&ty) {
            Some(map) => map.clone(),
            None if repeated => format!("*{ty}"),
            None => ty,
        };
        assert!(
            field.oneof_index.is_none() && !field.proto3_optional(),
            "{line}: NSM has no optional fields"
        );
        line += &format!(" {}={}:{shown}", field.name(), field.number());
    }
    into.insert(line);
}

fn describe_enum(scope: &str, values: &EnumDescriptorProto) -> String {
    let mut line = format!("{scope}.{}", values.name());
    for value in &values.value {
        line += &format!(" {}={}", value.name(), value.number());
    }
    line
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => bare(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn bare(type_name: &str) -> &str {
    type_name.trim_start_matches('.')
}

#[test]
fn generated_servers_carry_nsms_service_names() {
    use connection::monitor_connection_server as monitor;
    use networkservice::network_service_server as connect;
    assert_eq!(monitor::SERVICE_NAME, "connection.MonitorConnection");
    assert_eq!(connect::SERVICE_NAME, "networkservice.NetworkService");
    assert_eq!(network_service_registry_server::SERVICE_NAME, "registry.NetworkServiceRegistry");
    assert_eq!(
        network_service_endpoint_registry_server::SERVICE_NAME,
        "registry.NetworkServiceEndpointRegistry"
    );
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_request_survives_the_wire() {
    let segment = connection::PathSegment {
        name: "nsc".into(),
        id: "1".into(),
        token: "t".into(),
        expires: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 }),
        metrics: pairs(&[("rx", "1")]),
        ..connection::PathSegment::default()
    };
    let mechanism = connection::Mechanism {
        cls: "REMOTE".into(),
        r#type: "QUIC".into(),
        parameters: pairs(&[("connection", "c")]),
        ..connection::Mechanism::default()
    };
    let request = networkservice::NetworkServiceRequest {
        connection: Some(connection::Connection {
            id: "1".into(),
            network_service: "postgres@onprem.test".into(),
            mechanism: Some(mechanism.clone()),
            context: Some(connectioncontext::ConnectionContext { mtu: 1420, ..Default::default() }),
            labels: pairs(&[("app", "web"), ("zone", "1")]),
            path: Some(connection::Path {
                index: 0,
                path_segments: vec![segment],
                ..connection::Path::default()
            }),
            network_service_endpoint_name: "pg-1".into(),
            payload: "TCP".into(),
            state: connection::State::ReselectRequested.into(),
            ..connection::Connection::default()
        }),
        mechanism_preferences: vec![mechanism],
        ..networkservice::NetworkServiceRequest::default()
    };
    let octets = request.encode_to_vec();
    assert_eq!(octets, request.clone().encode_to_vec(), "maps encode in one order");
    assert_eq!(networkservice::NetworkServiceRequest::decode(&octets[..]).unwrap(), request);
}

#[test]
fn an_endpoint_encodes_to_the_octets_of_the_table() {
    let endpoint = registry::NetworkServiceEndpoint {
        name: "n".into(),
        network_service_names: vec!["s".into()],
        network_service_labels: [(
            "s".to_owned(),
            registry::NetworkServiceLabels {
                labels: pairs(&[("k", "v")]),
                ..registry::NetworkServiceLabels::default()
            },
        )]
        .into(),
        url: "u".into(),
        expiration_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        initial_registration_time: Some(prost_types::Timestamp { seconds: 2, nanos: 0 }),
        path_ids: vec!["p".into()],
        ..registry::NetworkServiceEndpoint::default()
    };
    // Tag octet = field number * 8 + wire type (protobuf encoding guide); 2 = length-delimited, 0 = varint.
    let expected: &[u8] = &[
        0x0a, 1, b'n', // 1: name
        0x12, 1, b's', // 2: network_service_names
        0x1a, 13, 0x0a, 1, b's', 0x12, 8, 0x0a, 6, 0x0a, 1, b'k', 0x12, 1, b'v', // 3: labels by service
        0x22, 1, b'u', // 4: url
        0x2a, 2, 0x08, 1, // 5: expiration_time
        0x32, 2, 0x08, 2, // 6: initial_registration_time
        0x3a, 1, b'p', // 7: path_ids
    ];
    assert_eq!(endpoint.encode_to_vec(), expected);
    assert_eq!(registry::NetworkServiceEndpoint::decode(expected).unwrap(), endpoint);
}
