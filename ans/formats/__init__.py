"""File formats of tensors: `.pth` that anybody may have made, and the shards that a base, a variant and an export consist of."""
