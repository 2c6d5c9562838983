package registry

import "google.golang.org/protobuf/proto"

// ServiceNames lists the gRPC services of this package that service implements.
func ServiceNames(service any) []string {
	var names []string
	if _, ok := service.(NetworkServiceRegistryServer); ok {
		names = append(names, NetworkServiceRegistry_ServiceDesc.ServiceName)
	}
	if _, ok := service.(NetworkServiceEndpointRegistryServer); ok {
		names = append(names, NetworkServiceEndpointRegistry_ServiceDesc.ServiceName)
	}
	return names
}

// receiver is a stream of answers of Find.
type receiver[Answer any] interface {
	Recv() (Answer, error)
}

// read collects answers until the stream ends, whatever ends it: a lost registry looks like one that has no more.
func read[Answer, Item any](stream receiver[Answer], item func(Answer) Item) []Item {
	var items []Item
	for {
		answer, err := stream.Recv()
		if err != nil {
			return items
		}
		items = append(items, item(answer))
	}
}

// forward passes answers on until the stream ends.
func forward[Answer any](stream receiver[Answer]) <-chan Answer {
	answers := make(chan Answer)
	go func() {
		defer close(answers)
		for {
			answer, err := stream.Recv()
			if err != nil {
				return
			}
			answers <- answer
		}
	}()
	return answers
}

// ReadNetworkServiceList collects the services of a stream.
func ReadNetworkServiceList(stream NetworkServiceRegistry_FindClient) []*NetworkService {
	return read(stream, (*NetworkServiceResponse).GetNetworkService)
}

// ReadNetworkServiceEndpointList collects the endpoints of a stream.
func ReadNetworkServiceEndpointList(stream NetworkServiceEndpointRegistry_FindClient) []*NetworkServiceEndpoint {
	return read(stream, (*NetworkServiceEndpointResponse).GetNetworkServiceEndpoint)
}

// ReadNetworkServiceChannel passes the answers of a stream on; the channel is closed when the stream ends.
func ReadNetworkServiceChannel(stream NetworkServiceRegistry_FindClient) <-chan *NetworkServiceResponse {
	return forward(stream)
}

// ReadNetworkServiceEndpointChannel passes the answers of a stream on; the channel is closed when the stream ends.
func ReadNetworkServiceEndpointChannel(stream NetworkServiceEndpointRegistry_FindClient) <-chan *NetworkServiceEndpointResponse {
	return forward(stream)
}

// copyOf is a deep copy; nil stays nil.
func copyOf[M proto.Message](message M) M {
	return proto.Clone(message).(M)
}

// Clone is a deep copy.
func (x *NetworkService) Clone() *NetworkService { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceEndpoint) Clone() *NetworkServiceEndpoint { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceLabels) Clone() *NetworkServiceLabels { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceQuery) Clone() *NetworkServiceQuery { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceEndpointQuery) Clone() *NetworkServiceEndpointQuery { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceResponse) Clone() *NetworkServiceResponse { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceEndpointResponse) Clone() *NetworkServiceEndpointResponse { return copyOf(x) }
