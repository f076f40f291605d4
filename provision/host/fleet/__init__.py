"""A fleet on its coordinator: groups, tenants spread over them, moves, restore points."""
