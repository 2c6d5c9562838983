package networkservice

import "slices"

// FilterMapOnManagerScopeSelector picks the connections that a selector of MonitorConnections means.
func FilterMapOnManagerScopeSelector(all map[string]*Connection, selector *MonitorScopeSelector) map[string]*Connection {
	picked := make(map[string]*Connection)
	for id, connection := range all {
		if selector.picks(connection) {
			picked[id] = connection
		}
	}
	return picked
}

// picks holds when the connection is of one of the services (or none are named) and its path has the selector's
// segments as a contiguous run.
func (x *MonitorScopeSelector) picks(connection *Connection) bool {
	services := x.GetNetworkServices()
	if len(services) > 0 && !slices.Contains(services, connection.GetNetworkService()) {
		return false
	}
	wanted, path := x.GetPathSegments(), connection.GetPath().GetPathSegments()
	for start := 0; start+len(wanted) <= len(path); start++ {
		if slices.EqualFunc(wanted, path[start:start+len(wanted)], (*PathSegment).fits) {
			return true
		}
	}
	return len(wanted) == 0
}

// fits compares what the selector's segment says; an empty field of it means any.
func (x *PathSegment) fits(segment *PathSegment) bool {
	fits := func(wanted, is string) bool { return wanted == "" || wanted == is }
	return fits(x.GetName(), segment.GetName()) && fits(x.GetId(), segment.GetId()) && fits(x.GetToken(), segment.GetToken())
}
