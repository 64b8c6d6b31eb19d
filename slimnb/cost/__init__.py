"""What a subnet costs: MACs, parameters, milliseconds, one by one and in tables for 100,000."""
