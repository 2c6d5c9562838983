module github.com/networkservicemesh/api

go 1.26

require (
	google.golang.org/grpc v1.71.1
	google.golang.org/protobuf v1.36.6
)
