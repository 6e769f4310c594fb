"""What is written: COCO and JSON, pictures, supervision."""
