package networkservice

// ServiceNames lists the gRPC services of this package that service implements.
func ServiceNames(service any) []string {
	var names []string
	if _, ok := service.(NetworkServiceServer); ok {
		names = append(names, NetworkService_ServiceDesc.ServiceName)
	}
	if _, ok := service.(MonitorConnectionServer); ok {
		names = append(names, MonitorConnection_ServiceDesc.ServiceName)
	}
	return names
}
