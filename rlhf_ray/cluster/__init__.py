"""Everything that knows Ray: resources, worker groups, deadlines, supervision."""
