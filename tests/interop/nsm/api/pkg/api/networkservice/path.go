package networkservice

// segment is the one at an index, nil outside of the path.
func (x *Path) segment(index int) *PathSegment {
	if index < 0 || index >= len(x.GetPathSegments()) {
		return nil
	}
	return x.GetPathSegments()[index]
}

// GetPrevPathSegment is the caller's segment, nil at the start of the path.
func (x *Connection) GetPrevPathSegment() *PathSegment {
	return x.GetPath().segment(int(x.GetPath().GetIndex()) - 1)
}

// GetCurrentPathSegment is the segment of the process that holds the connection.
func (x *Connection) GetCurrentPathSegment() *PathSegment {
	return x.GetPath().segment(int(x.GetPath().GetIndex()))
}

// GetNextPathSegment is the segment of the process that is called next, nil at the end of the path.
func (x *Connection) GetNextPathSegment() *PathSegment {
	return x.GetPath().segment(int(x.GetPath().GetIndex()) + 1)
}

// GetPrevPathSegment is the segment before the current one.
func (x *Path) GetPrevPathSegment() *PathSegment { return x.segment(int(x.GetIndex()) - 1) }

// GetCurrentPathSegment is the segment at the path's index.
func (x *Path) GetCurrentPathSegment() *PathSegment { return x.segment(int(x.GetIndex())) }

// GetNextPathSegment is the segment after the current one.
func (x *Path) GetNextPathSegment() *PathSegment { return x.segment(int(x.GetIndex()) + 1) }

// GetRequestConnection is the request's connection, made where it is missing.
func (x *NetworkServiceRequest) GetRequestConnection() *Connection {
	if x == nil {
		return nil
	}
	if x.Connection == nil {
		x.Connection = &Connection{}
	}
	return x.Connection
}
